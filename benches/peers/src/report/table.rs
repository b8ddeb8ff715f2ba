//! The table: for each group of the same promise, each job's contenders beside the limit.

use crate::contender::{Acks, Keeps, Kind};
use crate::measure::{Unit, Work, median};
use crate::peer;
use crate::plan::{Results, Sample};
use std::fmt::Write;

const HOW_TO_READ: &str = "\
Each figure is the median of its rounds, with the least and the most. *To the limit* is the figure
divided by the nearest physical limit of the same run. *To the best* is the figure divided by that
of the best peer in the group (keepq is no peer of itself), and *same acks* by that of the best
whose acks may come in the same order. Where the unit is messages/s, more is better; in all other
units, less is better. Groups promise different things, so their figures are not compared.
Latencies are p50 / p99 / p99.9 / longest, in microseconds.
";

/// A limit whose most is more than this many times its least was measured on a busy machine.
const STEADY: f64 = 1.33;

/// The figures of one contender for one work.
struct Row<'a> {
    contender: &'a str,
    kind: Option<Kind>,
    values: Vec<f64>,
    median: f64,
    latency: Option<[f64; 4]>,
}

pub(super) fn markdown(
    results: &Results,
    kinds: &[Kind],
    mode: &str,
    machine: &[String],
) -> String {
    let mut text = format!("# keepq beside its peers ({mode} run)\n\n");
    for line in machine {
        writeln!(text, "* {line}").unwrap();
    }
    write!(text, "\n{HOW_TO_READ}").unwrap();
    for keeps in Keeps::ALL {
        write!(text, "\n## Group {}: {}\n\n", keeps.letter(), keeps.words()).unwrap();
        group(&mut text, &results.samples, keeps);
    }
    text.push_str("\n## How quiet the machine was\n\n");
    unsteady(&mut text, &results.samples);
    text.push_str("\n## Left out\n\n");
    for (job, name, why) in &results.left_out {
        writeln!(text, "* {job}, {name}: {why}").unwrap();
    }
    for what in &results.cut_short {
        writeln!(text, "* {what}: stopped, as its time was over").unwrap();
    }
    for failure in &results.failures {
        writeln!(text, "* {failure}").unwrap();
    }
    text.push_str("\n## Contenders\n\n");
    text.push_str(
        "| | crate | group | acks | processes | |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    for kind in kinds {
        let processes = if kind.many_processes { "several" } else { "one" };
        let version = format!("{} {}", kind.package, peer::version(kind.package));
        let (group, acks) = (kind.keeps.letter(), kind.acks.words());
        let (name, remarks) = (kind.name, kind.remarks);
        writeln!(text, "| {name} | {version} | {group} | {acks} | {processes} | {remarks} |")
            .unwrap();
    }
    text
}

/// Tells of limits that changed during the run: something else used the machine, so the figures of
/// that work are not to be trusted.
fn unsteady(text: &mut String, samples: &[Sample]) {
    let mut found = false;
    let mut seen: Vec<(&str, &Work)> = Vec::new();
    for sample in samples.iter().filter(|sample| sample.kind.is_none()) {
        let (name, work) = (sample.contender, &sample.figure.work);
        if seen.contains(&(name, work)) {
            continue;
        }
        seen.push((name, work));
        let same =
            samples.iter().filter(|other| other.contender == name && other.figure.work == *work);
        let values: Vec<f64> = same.map(|sample| sample.figure.value).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if most > least * STEADY {
            let [least, most] = [least, most].map(|value| number(value, work.unit));
            let unit = work.unit.words();
            writeln!(text, "* {} {}, {name}: {least}..{most} {unit}", work.job, work.name).unwrap();
            found = true;
        }
    }
    let said = if found {
        "\nThese limits changed by more than a third, so the figures beside them are rough.\n"
    } else {
        "No limit changed by more than a third.\n"
    };
    text.push_str(said);
}

fn group(text: &mut String, samples: &[Sample], keeps: Keeps) {
    let columns = [
        "job",
        "contender",
        "acks",
        "median",
        "min..max",
        "unit",
        "to the limit",
        "to the best",
        "same acks",
        "latency, us",
    ];
    writeln!(text, "| {} |", columns.join(" | ")).unwrap();
    writeln!(text, "| {} |", columns.map(|_| "---").join(" | ")).unwrap();
    for work in works(samples, keeps) {
        let mut rows = rows(samples, &work, keeps);
        let sign = if work.unit.more_is_better() { -1.0 } else { 1.0 };
        // Limits first.
        rows.sort_by(|one, other| {
            let key = |row: &Row<'_>| (row.kind.is_some(), sign * row.median);
            let (one, other) = (key(one), key(other));
            one.0.cmp(&other.0).then(one.1.total_cmp(&other.1))
        });
        let limits = rows.iter().filter(|row| row.kind.is_none()).map(|row| row.median);
        let limit = worst(work.unit, limits);
        let mut name = format!("{} {}", work.job, work.name);
        for row in &rows {
            line(text, &name, row, &work, limit, &rows);
            name.clear();
        }
    }
}

/// What was measured for contenders of a group, in the order of the run.
fn works(samples: &[Sample], keeps: Keeps) -> Vec<Work> {
    let mut works: Vec<Work> = Vec::new();
    for sample in samples {
        let belongs = sample.kind.is_some_and(|kind| kind.keeps == keeps);
        if belongs && !works.contains(&sample.figure.work) {
            works.push(sample.figure.work.clone());
        }
    }
    works
}

fn rows<'a>(samples: &'a [Sample], work: &Work, keeps: Keeps) -> Vec<Row<'a>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let belongs = |sample: &&Sample| {
        sample.figure.work == *work && sample.kind.is_none_or(|kind| kind.keeps == keeps)
    };
    for sample in samples.iter().filter(belongs) {
        if !rows.iter().any(|row| row.contender == sample.contender) {
            let of_it = samples
                .iter()
                .filter(|other| belongs(other) && other.contender == sample.contender);
            let figures: Vec<_> = of_it.map(|sample| &sample.figure).collect();
            let values: Vec<f64> = figures.iter().map(|figure| figure.value).collect();
            let latencies: Vec<[f64; 4]> =
                figures.iter().filter_map(|figure| figure.latency).collect();
            let middle = |at: usize| {
                median(&latencies.iter().map(|latency| latency[at]).collect::<Vec<_>>())
            };
            rows.push(Row {
                contender: sample.contender,
                kind: sample.kind,
                median: median(&values).unwrap_or(f64::NAN),
                values,
                latency: middle(0).map(|_| [0, 1, 2, 3].map(|at| middle(at).unwrap_or(f64::NAN))),
            });
        }
    }
    rows
}

fn line(
    text: &mut String,
    name: &str,
    row: &Row<'_>,
    work: &Work,
    limit: Option<f64>,
    rows: &[Row<'_>],
) {
    let acks = row.kind.map(|kind| kind.acks);
    let peers = |same: Option<Acks>| {
        let peers = rows.iter().filter(move |row| {
            row.kind.is_some_and(|kind| {
                kind.package != "keepq" && same.is_none_or(|acks| acks == kind.acks)
            })
        });
        best(work.unit, peers.map(|row| row.median))
    };
    let ratio = |reference: Option<f64>| match reference {
        Some(reference) if reference > 0.0 && row.kind.is_some() => {
            number(row.median / reference, Unit::PerSecond)
        }
        _ => String::new(),
    };
    let least = row.values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = row.values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let latency = row.latency.map_or(String::new(), |latency| {
        latency.map(|micros| number(micros, Unit::Microseconds)).join(" / ")
    });
    writeln!(
        text,
        "| {name} | {} | {} | {} | {}..{} | {} | {} | {} | {} | {latency} |",
        row.contender,
        acks.map_or("", Acks::words),
        number(row.median, work.unit),
        number(least, work.unit),
        number(most, work.unit),
        work.unit.words(),
        ratio(limit),
        ratio(peers(None)),
        acks.map_or(String::new(), |acks| ratio(peers(Some(acks)))),
    )
    .unwrap();
}

fn best(unit: Unit, values: impl Iterator<Item = f64>) -> Option<f64> {
    values.reduce(if unit.more_is_better() { f64::max } else { f64::min })
}

fn worst(unit: Unit, values: impl Iterator<Item = f64>) -> Option<f64> {
    values.reduce(if unit.more_is_better() { f64::min } else { f64::max })
}

/// With three digits, or all of them and commas if there are more.
fn number(value: f64, unit: Unit) -> String {
    if unit == Unit::Count {
        return format!("{value:.0}");
    }
    if value < 99.5 {
        let decimals = if value < 0.995 {
            3
        } else if value < 9.95 {
            2
        } else {
            1
        };
        return format!("{value:.decimals$}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_commas() {
        let shown = [0.0004, 0.5, 9.94, 9.96, 99.4, 99.6, 1234.4, 12_345_678.0]
            .map(|value| number(value, Unit::PerSecond));
        let told = ["0.000", "0.500", "9.94", "10.0", "99.4", "100", "1,234", "12,345,678"];
        assert_eq!(shown, told);
    }

    #[test]
    fn the_nearest_limit_is_the_worst_one() {
        assert_eq!(worst(Unit::PerSecond, [3.0, 1.0, 2.0].into_iter()), Some(1.0));
        assert_eq!(worst(Unit::Mib, [3.0, 1.0, 2.0].into_iter()), Some(3.0));
        assert_eq!(best(Unit::Mib, [3.0, 1.0, 2.0].into_iter()), Some(1.0));
    }
}
