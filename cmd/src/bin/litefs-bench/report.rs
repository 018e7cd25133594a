//! The table and its JSON.

use std::fmt;

use anyhow::Result;
use serde::Serialize;

/// One row: medians of both sides and their ratio.
#[derive(Debug, Serialize)]
pub struct Row {
    name: String,
    unit: &'static str,
    target: f64,
    bare: f64,
    litefs: f64,
    ratio: f64,
    rounds_bare: Vec<f64>,
    rounds_litefs: Vec<f64>,
}

impl Row {
    pub fn new(name: String, unit: &'static str, target: f64, bare: Vec<f64>, litefs: Vec<f64>) -> Self {
        let (bare_median, litefs_median) = (median(&bare), median(&litefs));
        Self {
            name,
            unit,
            target,
            bare: bare_median,
            litefs: litefs_median,
            ratio: litefs_median / bare_median,
            rounds_bare: bare,
            rounds_litefs: litefs,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ratio >= self.target { "" } else { "missed" };
        write!(
            f,
            "| {:<66} | {:>11.0} | {:>11.0} | {:>9} | {:>5.2} | {:>4.2} | {:<6} |",
            self.name, self.bare, self.litefs, self.unit, self.ratio, self.target, verdict
        )
    }
}

/// CPU and memory of the node's processes.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// Share of one core, in percent, over the time observed.
    pub cpu_percent: f64,
    /// Resident memory of supervisor and worker together, in MB.
    pub rss_mb: f64,
}

/// Commit → event, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    pub p50_us: f64,
    pub p99_us: f64,
    pub samples: usize,
}

/// A replica over loopback.
#[derive(Debug, Clone, Serialize)]
pub struct Replication {
    /// From a commit's return to its being visible to SQL on the replica.
    pub visible_p50_us: f64,
    pub visible_p99_us: f64,
    /// Small transactions in a row on the primary, while the replica follows.
    pub commits_per_second: f64,
    /// The same, counted to the moment at which the replica has all of them.
    pub applied_per_second: f64,
    /// Catching up by records of 1 MB.
    pub catch_up_mb_per_second: f64,
    /// A database as a whole.
    pub snapshot_mb_per_second: f64,
    /// One new file of that size, written and synced.
    pub disk_mb_per_second: f64,
    /// The replica while nothing happens.
    pub idle: Usage,
}

impl fmt::Display for Replication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| replica over loopback | measured | goal |\n|---|---:|---:|")?;
        writeln!(f, "| commit to visible, p50 | {:.2} ms | < 0.7 ms |", self.visible_p50_us / 1e3)?;
        writeln!(f, "| commit to visible, p99 | {:.2} ms | < 5 ms |", self.visible_p99_us / 1e3)?;
        writeln!(f, "| small commits on the primary | {:.0}/s | |", self.commits_per_second)?;
        writeln!(f, "| … applied on the replica | {:.0}/s | ≥ the primary's |", self.applied_per_second)?;
        writeln!(
            f,
            "| catch-up by records of 1 MB | {:.0} MB/s | 300 MB/s, or the disk's {:.0} |",
            self.catch_up_mb_per_second, self.disk_mb_per_second
        )?;
        writeln!(f, "| snapshot of 200 MB | {:.0} MB/s | the same |", self.snapshot_mb_per_second)?;
        writeln!(f, "| idle processor | {:.2} % of a core | < 1 % |", self.idle.cpu_percent)?;
        writeln!(f, "| idle memory | {:.1} MB | < 30 MB |", self.idle.rss_mb)
    }
}

#[derive(Debug, Serialize)]
pub struct Report {
    machine: String,
    rounds: usize,
    rows: Vec<Row>,
    idle: Option<Usage>,
    load: Option<Usage>,
    latency: Option<Latency>,
    replication: Option<Replication>,
}

impl Report {
    pub fn new(rounds: usize) -> Self {
        Self { machine: machine(), rounds, rows: Vec::new(), idle: None, load: None, latency: None, replication: None }
    }

    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn idle(&mut self, usage: &Usage) {
        self.idle = Some(usage.clone());
    }

    pub fn load(&mut self, usage: &Usage) {
        self.load = Some(usage.clone());
    }

    pub fn latency(&mut self, latency: &Latency) {
        self.latency = Some(latency.clone());
    }

    pub fn replication(&mut self, replication: &Replication) {
        self.replication = Some(replication.clone());
    }

    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}; medians of {} rounds, alternating\n", self.machine, self.rounds)?;
        writeln!(
            f,
            "| {:<66} | {:>11} | {:>11} | {:>9} | {:>5} | {:>4} | {:<6} |",
            "workload", "bare", "litefs", "unit", "ratio", "goal", ""
        )?;
        writeln!(f, "|{:-<68}|{:-<12}:|{:-<12}:|{:-<11}|{:-<6}:|{:-<5}:|{:-<8}|", "", "", "", "", "", "", "")?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        for (when, usage) in [("idle", &self.idle), ("over the whole run", &self.load)] {
            if let Some(usage) = usage {
                writeln!(f, "\n{when}: {:.2} % of a core, {:.1} MB resident", usage.cpu_percent, usage.rss_mb)?;
            }
        }
        if let Some(latency) = &self.latency {
            let Latency { p50_us, p99_us, samples } = latency;
            writeln!(f, "\ncommit to event: p50 {p50_us:.0} µs, p99 {p99_us:.0} µs ({samples} commits)")?;
        }
        if let Some(replication) = &self.replication {
            write!(f, "{replication}")?;
        }
        Ok(())
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

/// The value below which `percent` of the values lie (nearest rank); NaN of nothing.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (percent / 100.0 * (sorted.len().saturating_sub(1)) as f64).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// CPU, cores, memory and kernel, as the reader of the figures needs them.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!(
        "{} x {}, memory {}, Linux {}, SQLite {}",
        cores,
        field(&read("/proc/cpuinfo"), "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/sys/kernel/osrelease").trim(),
        rusqlite::version()
    )
}
