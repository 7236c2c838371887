use kiln_runtime::Error;
use kiln_runtime::image::{Comparison, RgbImage};
use serde_json::json;

use crate::args::CompareArgs;
use crate::failure::Failure;
use crate::{output, paths};

pub(crate) fn run(args: &CompareArgs) -> Result<(), Failure> {
    if let Some(path) = &args.diff {
        paths::check_outputs(std::slice::from_ref(path))?;
    }
    let [a, b] = [&args.a, &args.b].map(|path| RgbImage::open(path).map_err(Error::from));
    let (a, b) = (a?, b?);
    let comparison = a.compare(&b).map_err(Error::from)?;
    let mut gain = None;
    if let Some(path) = &args.diff {
        let (difference, factor) = a.difference(&b).map_err(Error::from)?;
        difference
            .save_png(path, &[("Comment", format!("differences times {factor}"))])
            .map_err(Error::from)?;
        gain = Some(factor);
    }
    let crossed = crossed(args, &comparison);
    if args.json {
        let mut report = json!(comparison);
        report["difference_gain"] = json!(gain);
        report["passes"] = json!(crossed.is_none());
        output::data(&report.to_string());
    } else {
        output::data(&describe(&comparison));
        if let (Some(path), Some(gain)) = (&args.diff, gain) {
            output::data(&format!("differences times {gain}: {}", path.display()));
        }
    }
    match crossed {
        None => Ok(()),
        Some(reason) => Err(Failure::differs(reason)),
    }
}

fn describe(comparison: &Comparison) -> String {
    let Comparison { max_difference, mean_difference, differing, psnr, ssim } = comparison;
    let psnr = psnr.map_or("equal".into(), |psnr| format!("{psnr:.2} dB"));
    let ssim = ssim.map_or("too small".into(), |ssim| format!("{ssim:.5}"));
    format!(
        "max {max_difference}/255, mean {mean_difference:.4}/255, {:.2}% of the pixels differ, PSNR {psnr}, SSIM {ssim}",
        100.0 * differing
    )
}

/// The first limit that is crossed.
fn crossed(args: &CompareArgs, found: &Comparison) -> Option<String> {
    if let Some(max) = args.max_difference.filter(|max| found.max_difference > *max) {
        return Some(format!("a difference of {} is over {max}", found.max_difference));
    }
    if let (Some(psnr), Some(min)) = (found.psnr, args.min_psnr)
        && psnr < min
    {
        return Some(format!("a PSNR of {psnr:.2} dB is under {min}"));
    }
    match (found.ssim, args.min_ssim) {
        (None, Some(_)) => Some("the pictures are too small for a structural similarity".into()),
        (Some(ssim), Some(min)) if ssim < min => Some(format!("an SSIM of {ssim:.5} is under {min}")),
        _ => None,
    }
}
