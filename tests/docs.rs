//! Documents say what the program does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_runtime::scheduler::SchedulerClass;

use crate::cli::succeed;
use crate::server::variables::variables_of_help;
use crate::support::references;

/// Most lines of the README.
const README_LINES: usize = 150;

/// Flags of programs other than kiln that documents name by themselves.
const FOREIGN: [&str; 1] = ["--write"];

type Flags = BTreeSet<String>;

fn root() -> PathBuf {
    references().ancestors().nth(2).expect("the workspace").into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every Markdown file of `docs/`.
fn guides() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("docs")).expect("docs").flatten().map(|entry| entry.path());
    let mut guides: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    guides.sort();
    guides
}

fn with_readme(guides: Vec<PathBuf>) -> Vec<PathBuf> {
    [root().join("README.md")].into_iter().chain(guides).collect()
}

fn help(command: &[&str]) -> String {
    succeed(Command::new(env!("CARGO_BIN_EXE_kiln")).args(command).arg("--help"))
}

/// Lines of a part of a text, from the one after its title to the next empty one.
fn part<'a>(text: &'a str, title: &str) -> impl Iterator<Item = &'a str> {
    let lines = text.lines().skip_while(move |line| *line != title).skip(1).collect::<Vec<_>>();
    lines.into_iter().take_while(|line| !line.is_empty())
}

/// The commands below one, by the words after `kiln`, with the flags that the help of each lists.
fn commands(above: &[&str]) -> BTreeMap<String, Flags> {
    let text = help(above);
    let below: Vec<&str> = part(&text, "Commands:")
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    let mut found: BTreeMap<String, Flags> =
        below.iter().flat_map(|name| commands(&[above, &[*name]].concat())).collect();
    let own = flags_of(&text);
    if !above.is_empty() && (below.is_empty() || !own.is_empty()) {
        found.insert(above.join(" "), own);
    }
    found
}

/// The flags that a help text lists.
fn flags_of(help: &str) -> Flags {
    let lines = help.lines().map(str::trim_start);
    let flags = lines.filter(|line| line.starts_with('-')).filter_map(|line| {
        let flag = line.split([' ', ',', '=']).find(|word| word.starts_with("--"))?;
        Some(flag.to_owned())
    });
    flags.filter(|flag| !["--help", "--version"].contains(&flag.as_str())).collect()
}

/// The word's flag, without what stands around it.
fn flag(word: &str) -> Option<&str> {
    let word = word.trim_matches(['`', '"', '\'', '[', ']', '(', ')', ',', '.', ';', ':']);
    word.starts_with("--").then(|| word.split('=').next().unwrap_or(word)).filter(|flag| flag.len() > 2)
}

/// Lines of code blocks, and code within lines.
fn code(text: &str) -> Vec<String> {
    let (mut found, mut is_block) = (Vec::new(), false);
    for line in text.lines() {
        match (line.starts_with("```"), is_block) {
            (true, _) => is_block = !is_block,
            (false, true) => found.push(line.split(" #").next().unwrap_or(line).to_owned()),
            (false, false) => found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    found
}

/// Calls of kiln in a line of code: the command, and the flags after it.
fn calls(line: &str, known: &BTreeMap<String, Flags>) -> Vec<(String, Vec<String>)> {
    let line = line.replace("cargo run --release -- ", "kiln ");
    let calls = line.split("kiln ").skip(1).filter_map(|call| {
        let words: Vec<&str> = call.split([' ', ')', '|']).collect();
        let name = (1..=2.min(words.len())).rev().map(|n| words[..n].join(" "));
        let name = name.into_iter().find(|name| known.contains_key(name))?;
        Some((name, words.iter().filter_map(|word| flag(word)).map(str::to_owned).collect()))
    });
    calls.collect()
}

#[test]
fn flags_that_documents_name_exist() {
    let known = commands(&[]);
    let all: Flags = known.values().flatten().cloned().collect();
    let mut n_calls = 0;
    for path in with_readme(guides()) {
        let place = path.display();
        for line in code(&read(&path)) {
            for (command, flags) in calls(&line, &known) {
                n_calls += 1;
                for flag in flags {
                    assert!(known[&command].contains(&flag), "{place}: kiln {command} has no {flag}");
                }
            }
            if let Some(flag) = line.split(' ').next().and_then(flag) {
                assert!(all.contains(flag) || FOREIGN.contains(&flag), "{place}: no command has {flag}");
            }
        }
    }
    assert!(n_calls > 50, "{n_calls} calls");
}

#[test]
fn the_reference_lists_every_command_and_flag() {
    let text = read(&root().join("docs/reference.md"));
    let sections = text.split("\n### kiln ").skip(1).map(|section| {
        let (name, body) = section.split_once('\n').expect("a section");
        let body = body.split("\n#").next().unwrap_or(body);
        let flags = body.split('`').skip(1).step_by(2).filter_map(flag).map(str::to_owned);
        (name.to_owned(), flags.collect::<Flags>())
    });
    let listed: BTreeMap<String, Flags> = sections.collect();
    let known = commands(&[]);
    assert_eq!(listed.keys().collect::<Vec<_>>(), known.keys().collect::<Vec<_>>());
    for (command, flags) in &known {
        assert_eq!(&listed[command], flags, "kiln {command}");
    }
    for command in known.keys() {
        let is_above = known.keys().any(|other| other.starts_with(&format!("{command} ")));
        assert!(is_above || text.contains(&format!("| `kiln {command}` |")), "no row for kiln {command}");
    }
}

/// Rows of the table in a part of the reference, as cells.
fn table(title: &str) -> Vec<Vec<String>> {
    let text = read(&root().join("docs/reference.md"));
    let section = text.split(&format!("\n## {title}\n")).nth(1).unwrap_or_else(|| panic!("no part '{title}'"));
    let section = section.split("\n## ").next().unwrap_or(section);
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.split('|').skip(1).map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn the_reference_lists_the_exit_codes() {
    let text = help(&[]);
    let mut expected = Vec::<(String, String)>::new();
    for line in part(&text, "Exit codes:") {
        match line.trim_start().split_once("  ") {
            Some((code, meaning)) if code.parse::<u8>().is_ok() => expected.push((code.into(), meaning.into())),
            _ => expected.last_mut().expect("a code before").1.push_str(&format!(" {}", line.trim())),
        }
    }
    assert!(expected.len() > 7, "{text}");
    let listed: Vec<_> = table("Exit codes").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    assert_eq!(listed, expected);
}

#[test]
fn the_reference_lists_the_environment_variables() {
    let text = help(&[]);
    // What goes on in a second line has no name with a gap behind it.
    let lines = part(&text, "Environment:").filter_map(|line| line.strip_prefix("  ")?.split_once("  "));
    let expected: BTreeSet<&str> = lines.map(|(name, _)| name).filter(|name| !name.is_empty()).collect();
    assert!(expected.contains("KILN_CACHE_DIR"), "{text}");
    let rows = table("Environment variables");
    let listed: BTreeSet<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(listed, expected);
}

#[test]
fn the_reference_lists_the_variable_of_every_flag_of_the_server() {
    let rows = table("Environment variables of kiln serve");
    let listed: BTreeMap<String, String> = rows
        .iter()
        .map(|row| [&row[1], &row[0]].map(|cell| cell.trim_matches('`').to_owned()))
        .map(|[flag, variable]| (if flag.starts_with("--") { flag } else { "[MODELS]".into() }, variable))
        .collect();
    assert_eq!(listed, variables_of_help());
}

#[test]
fn the_readme_is_short() {
    let n_lines = read(&root().join("README.md")).lines().count();
    assert!(n_lines <= README_LINES, "{n_lines} lines");
}

/// What the links of a document outside code lead to, but for other sites.
fn links(text: &str) -> Vec<String> {
    let is_code = |line: &&str| line.starts_with("    ");
    let prose = text.split("```").step_by(2).flat_map(str::lines).filter(|line| !is_code(line));
    let targets = prose.flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// The names under which a document's headings can be linked.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    let slug = |heading: &str| {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    headings.map(slug).collect()
}

#[test]
fn links_lead_somewhere() {
    let others = ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "engine-cache/README.md"];
    let others =
        others.iter().chain(&["models/shapes/README.md", "tests/gpu/README.md", "tests/fuzz/README.md"]);
    let mut n_links = 0;
    for path in with_readme(guides()).into_iter().chain(others.map(|name| root().join(name))) {
        for link in links(&read(&path)) {
            n_links += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let file = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            assert!(file.exists(), "{}: {link}", path.display());
            assert!(anchor.is_empty() || anchors(&read(&file)).contains(anchor), "{}: {link}", path.display());
        }
    }
    assert!(n_links > 30, "{n_links} links");
}

#[test]
fn every_guide_is_linked() {
    let linked: BTreeSet<PathBuf> = with_readme(guides())
        .into_iter()
        .flat_map(|path| {
            let files = links(&read(&path)).into_iter().map(|link| link.split('#').next().map(PathBuf::from));
            let folder = path.with_file_name("");
            files
                .flatten()
                .filter_map(move |file| folder.join(file).canonicalize().ok())
                .filter(move |file| path.canonicalize().is_ok_and(|own| own != *file))
        })
        .collect();
    for guide in guides() {
        let guide = guide.canonicalize().expect("a path");
        assert!(linked.contains(&guide), "no document links to {}", guide.display());
    }
}

#[test]
fn help_and_reference_list_the_schedulers() {
    let help = help(&["generate"]);
    let listed = read(&root().join("docs/reference.md"));
    let rows: Vec<&str> = part(&listed, "| short name | diffusers' class |").skip(1).collect();
    let of_reference: BTreeSet<String> =
        rows.iter().flat_map(|row| row.split('`').skip(1).step_by(2)).map(Into::into).collect();
    let of_program = SchedulerClass::short_names().chain(SchedulerClass::names()).map(Into::into);
    assert_eq!(of_reference, of_program.collect());
    let words: BTreeSet<&str> = part(&help, "Schedulers:").flat_map(|line| line.split([' ', ','])).collect();
    assert!(SchedulerClass::short_names().all(|name| words.contains(name)), "{help}");
}
