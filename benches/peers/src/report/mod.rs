//! What a run leaves behind: lines of JSON, a table, and plots.

mod chart;
mod machine;
mod plots;
mod table;

use crate::contender::Kind;
use crate::measure::PERCENTS;
use crate::peer;
use crate::plan::{Results, Sample};
use std::fmt::Write;
use std::path::Path;

/// One figure as a line of JSON.
pub(crate) fn json(sample: &Sample) -> String {
    let figure = &sample.figure;
    let package = sample.kind.map_or("", |kind| kind.package);
    let group = sample.kind.map_or("limit", |kind| kind.keeps.letter());
    let acks = sample.kind.map_or("", |kind| kind.acks.words());
    let version = if package.is_empty() { "" } else { peer::version(package) };
    let mut line = format!(
        "{{\"job\":\"{}\",\"work\":\"{}\",\"contender\":\"{}\",\"package\":\"{package}\",\
         \"version\":\"{version}\",\"group\":\"{group}\",\"acks\":\"{acks}\",\
         \"payload_bytes\":{},\"threads\":{},\"messages\":{},\"seconds\":{:.6},\
         \"rate\":{:.3},\"value\":{:.3},\"unit\":\"{}\",\"round\":{}",
        figure.work.job,
        figure.work.name,
        sample.contender,
        figure.work.payload,
        figure.work.threads,
        figure.messages,
        figure.seconds,
        figure.messages as f64 / figure.seconds.max(1e-9),
        figure.value,
        figure.work.unit.words(),
        sample.round
    );
    if let Some(latency) = figure.latency {
        for (percent, micros) in PERCENTS.iter().zip(latency) {
            let name = if *percent >= 100.0 { "max".into() } else { format!("p{percent}") };
            write!(line, ",\"{name}_us\":{micros:.3}").unwrap();
        }
    }
    line.push('}');
    line
}

/// Writes the table and the plots.
pub(crate) fn write(out: &Path, results: &Results, kinds: &[Kind], mode: &str) {
    let machine = machine::describe(&crate::plan::place());
    let table = table::markdown(results, kinds, mode, &machine);
    std::fs::write(out.join("table.md"), table).unwrap();
    for (name, svg) in plots::all(&results.samples) {
        std::fs::write(out.join(name), svg).unwrap();
    }
}
