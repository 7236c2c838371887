//! Which part of a client's jobs is listed.

use crate::JobId;
use crate::http::error::ApiError;

/// Most jobs of a page, and as many where the client says no number.
pub(super) const MAX: usize = 200;

/// So many jobs, of those that came before another one.
#[derive(Debug, PartialEq)]
pub(super) struct Page {
    pub(super) limit: usize,
    pub(super) before: Option<JobId>,
}

impl Page {
    /// Reads a query, of which nothing needs escapes.
    pub(super) fn read(query: &str) -> Result<Page, ApiError> {
        let mut page = Page { limit: MAX, before: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=').unwrap_or((pair, "")) {
                ("limit", number) => page.limit = limit(number)?,
                ("before", id) => page.before = Some(JobId::parse(id).ok_or_else(no_job)?),
                (name, _) => {
                    let name: String = name.chars().take(64).collect();
                    return Err(ApiError::invalid(&name, format!("{name}: is not a parameter")));
                }
            }
        }
        Ok(page)
    }
}

fn limit(number: &str) -> Result<usize, ApiError> {
    let limit = number.parse().ok().filter(|limit| (1..=MAX).contains(limit));
    limit.ok_or_else(|| ApiError::invalid("limit", format!("limit: is not from 1 to {MAX}")))
}

fn no_job() -> ApiError {
    ApiError::invalid("before", "before: is not the id of a job")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_checked() {
        assert_eq!(Page::read("").expect("a page"), Page { limit: MAX, before: None });
        let id = JobId::random();
        let page = Page::read(&format!("limit=7&before={id}")).expect("a page");
        assert_eq!(page, Page { limit: 7, before: Some(id) });
        for wrong in
            ["limit=0", "limit=201", "limit=-1", "limit=", "limit=1e400", "before=x", "after=1", "limit"]
        {
            assert!(Page::read(wrong).is_err(), "{wrong}");
        }
    }
}
