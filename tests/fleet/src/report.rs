//! A run's figures as a row of a Markdown table.

use crate::Run;
use crate::measure::Figures;

/// The table's first two lines.
pub(crate) const HEAD: &str = "\
| scenario | load | hosts' policies | peak bytes | peak requests | handshakes/s | overloaded, minutes | fresh, median | fresh, p99 | backlog gone | lines lost |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

/// The row of a run.
pub(crate) fn row(run: &Run, figures: &Figures) -> String {
    let collapse = if figures.is_collapse() { ", **collapsed**" } else { "" };
    format!(
        "| {} | {} % | {} | {:.2} × | {:.2} × | {:.0} | {} of {}{collapse} | {} | {} | {} | {} |",
        run.scenario.title(),
        run.load,
        run.policy.title(),
        figures.peak_bytes,
        figures.peak_requests,
        figures.handshakes,
        figures.overloaded,
        figures.watched,
        seconds(figures.fresh_median),
        seconds(figures.fresh_most),
        seconds(figures.gone),
        figures.dropped,
    )
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "never".to_owned(), |seconds| format!("{seconds:.0} s"))
}
