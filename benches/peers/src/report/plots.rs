//! Which figures each plot shows.

use super::chart::{Panel, Scale, Series, svg};
use crate::contender::{Keeps, Kind};
use crate::measure::{PERCENTS, median};
use crate::plan::Sample;

/// File names and pictures; those without figures are left out.
pub(super) fn all(samples: &[Sample]) -> Vec<(&'static str, String)> {
    let plots = [
        ("throughput.svg", "Push, by size", throughput(samples)),
        ("durable.svg", "Push 1 KiB, synced, by threads", durable(samples)),
        ("latency.svg", "Message age when it is popped", latency(samples)),
        ("open.svg", "Open after kill -9, by backlog", open(samples)),
        ("disk.svg", "Disk in use, by age", disk(samples)),
    ];
    let mut drawn = Vec::new();
    for (name, title, mut panels) in plots {
        panels.retain(|panel| !panel.series.is_empty());
        if !panels.is_empty() {
            drawn.push((name, svg(title, &panels)));
        }
    }
    drawn
}

/// One line for each contender that has figures, with the median of each place.
fn series(
    samples: &[Sample],
    belongs: impl Fn(Option<Kind>) -> bool,
    place: impl Fn(&Sample) -> Option<(f64, f64)>,
) -> Vec<Series> {
    let mut found: Vec<(&Sample, Vec<(f64, f64)>)> = Vec::new();
    for sample in samples.iter().filter(|sample| belongs(sample.kind)) {
        let Some(point) = place(sample) else { continue };
        match found.iter_mut().find(|(first, _)| first.contender == sample.contender) {
            Some((_, points)) => points.push(point),
            None => found.push((sample, vec![point])),
        }
    }
    let line = |(sample, points): (&Sample, Vec<(f64, f64)>)| {
        let mut places: Vec<f64> = points.iter().map(|point| point.0).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        let middle = |x: f64| {
            let at_x = points.iter().filter(|point| point.0.total_cmp(&x).is_eq());
            let values: Vec<f64> = at_x.map(|point| point.1).collect();
            (x, median(&values).unwrap_or(f64::NAN))
        };
        Series {
            name: sample.contender.to_string(),
            is_keepq: sample.kind.is_some_and(|kind| kind.package == "keepq"),
            is_limit: sample.kind.is_none(),
            number: number(sample.contender),
            points: places.into_iter().map(middle).collect(),
        }
    };
    found.into_iter().map(line).collect()
}

/// The place of the contender's package among all; a second unsynced kind of one comes after them.
fn number(contender: &str) -> usize {
    let kinds = crate::peer::all();
    let Some(kind) = kinds.iter().find(|kind| kind.name == contender) else { return 0 };
    let mut packages: Vec<&str> = kinds.iter().map(|kind| kind.package).collect();
    packages.dedup();
    packages.retain(|package| *package != "keepq");
    let place = packages.iter().position(|package| *package == kind.package).unwrap_or(0);
    let mut alike =
        kinds.iter().filter(|other| other.package == kind.package && other.keeps == kind.keeps);
    let is_first = alike.next().is_some_and(|first| first.name == contender);
    if is_first { place } else { place + packages.len() }
}

fn in_group(keeps: Keeps) -> impl Fn(Option<Kind>) -> bool {
    move |kind| kind.is_none_or(|kind| kind.keeps == keeps)
}

fn throughput(samples: &[Sample]) -> Vec<Panel> {
    let by_size = |works: &'static [&'static str]| {
        move |sample: &Sample| {
            let work = &sample.figure.work;
            let name = format!("{} {}", work.job, work.name);
            works
                .iter()
                .any(|known| name.starts_with(known))
                .then_some((work.payload as f64, sample.figure.value))
        }
    };
    let panel = |keeps: Keeps, works| Panel {
        title: format!("Group {}: {}", keeps.letter(), keeps.words()),
        x_title: "payload, bytes".into(),
        y_title: "messages/s, 1 thread".into(),
        x: Scale::Log,
        series: series(samples, in_group(keeps), by_size(works)),
    };
    vec![
        panel(Keeps::Kill, &["P1 ", "P3 ", "P4 push 64 KiB, first"]),
        panel(Keeps::Power, &["P5 ", "P15 "]),
    ]
}

fn durable(samples: &[Sample]) -> Vec<Panel> {
    let of_threads = |value: fn(&Sample) -> Option<f64>| {
        move |sample: &Sample| {
            let threads = sample.figure.work.threads as f64;
            if sample.figure.work.job == "P6" { Some((threads, value(sample)?)) } else { None }
        }
    };
    let panel = |title: &str, y_title: &str, value| Panel {
        title: title.into(),
        x_title: "threads".into(),
        y_title: y_title.into(),
        x: Scale::Log,
        series: series(samples, in_group(Keeps::Power), of_threads(value)),
    };
    vec![
        panel("Rate", "messages/s", |sample| Some(sample.figure.value)),
        panel("Time of a push, p99", "microseconds", |sample| Some(sample.figure.latency?[1])),
    ]
}

fn latency(samples: &[Sample]) -> Vec<Panel> {
    let names: Vec<String> = PERCENTS
        .iter()
        .map(|percent| if *percent >= 100.0 { "longest".into() } else { format!("p{percent}") })
        .collect();
    let panel = |rate: &str| {
        let mut lines: Vec<Series> = Vec::new();
        for at in 0..PERCENTS.len() {
            let place = |sample: &Sample| {
                let work = &sample.figure.work;
                let belongs = work.job == "P9" && work.name.contains(&format!("at {rate}"));
                let latency = sample.figure.latency.filter(|_| belongs)?;
                Some((at as f64, latency[at].max(0.01)))
            };
            for line in series(samples, |_| true, place) {
                match lines.iter_mut().find(|known| known.name == line.name) {
                    Some(known) => known.points.extend(line.points),
                    None => lines.push(line),
                }
            }
        }
        // Several lines are keepq's here: only the unsynced one is thick.
        for line in &mut lines {
            line.is_keepq &= line.name == crate::peer::OS.name;
        }
        Panel {
            title: format!("{} messages/s, 256 B", rate.trim_end_matches("/s")),
            x_title: "percentile".into(),
            y_title: "microseconds".into(),
            x: Scale::Names(names.clone()),
            series: lines,
        }
    };
    vec![panel("10 k/s"), panel("100 k/s")]
}

fn open(samples: &[Sample]) -> Vec<Panel> {
    let panel = |prefix: &'static str, y_title: &str| Panel {
        title: prefix.into(),
        x_title: "messages that wait, 100 B each".into(),
        y_title: y_title.into(),
        x: Scale::Log,
        series: series(
            samples,
            |_| true,
            |sample| {
                let work = &sample.figure.work;
                let rest = work.name.strip_prefix(prefix).filter(|_| work.job == "P10")?;
                let mut words = rest.trim_start_matches(", ").split(' ');
                let number: f64 = words.next()?.parse().ok()?;
                let times = if words.next()? == "k" { 1e3 } else { 1e6 };
                Some((number * times, sample.figure.value.max(0.001)))
            },
        ),
    };
    vec![panel("open", "milliseconds"), panel("memory at open", "MiB")]
}

fn disk(samples: &[Sample]) -> Vec<Panel> {
    let ages = ["right away", "10 s later"];
    let panel = |title: &str, needle: &'static str| Panel {
        title: title.into(),
        x_title: "since the last push or ack".into(),
        y_title: "MiB".into(),
        x: Scale::Names(ages.map(String::from).to_vec()),
        series: series(
            samples,
            |_| true,
            |sample| {
                let work = &sample.figure.work;
                if work.job != "P12" || !work.name.contains(needle) {
                    return None;
                }
                let at = ages.iter().position(|age| work.name.ends_with(age))?;
                // An empty directory has a place on the axis, too.
                Some((at as f64, sample.figure.value.max(0.01)))
            },
        ),
    };
    vec![
        panel("1 M x 100 B waiting", "waiting"),
        panel("all acked", "all acked"),
        panel("1 in 1,000 left", "1 in 1,000"),
    ]
}
