//! `litefs-bench`: measures a litefs node against plain SQLite on the same disk, in the same run.
//!
//! Every row runs alternately on the bare directory and on the mount, several rounds each; the table shows the medians and
//! their ratio (mount ÷ bare, more is better). See docs/benchmarks.md for the rows and their targets.

mod latency;
mod node;
mod replication;
mod report;
mod side;
mod workloads;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;

use node::{Node, Role};
use report::{Report, Row};
use side::Side;
use workloads::Workload;

/// Measures litefs against plain SQLite on the same disk.
#[derive(Debug, Parser)]
#[command(name = "litefs-bench")]
struct Args {
    /// Directory on the disk to measure; a folder is made in it and removed again.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// The litefs binary; the one beside this program by default.
    #[arg(long)]
    litefs: Option<PathBuf>,
    /// Rounds of each row on each side; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only rows whose name contains this text.
    #[arg(long, default_value = "")]
    filter: String,
    /// A tenth of the work per round, for a first look.
    #[arg(long)]
    quick: bool,
    /// Writes the results as JSON, too.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let litefs = match &args.litefs {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("litefs"),
    };
    let scratch = tempfile::Builder::new()
        .prefix("litefs-bench-")
        .tempdir_in(&args.dir)
        .with_context(|| format!("make a folder in {}", args.dir.display()))?;
    let node = Node::start(&litefs, scratch.path(), Role::Primary)?;
    let bare = scratch.path().join("bare");
    std::fs::create_dir(&bare)?;
    let sides = [Side::new("bare", &bare), Side::new("litefs", node.mount())];

    let mut report = Report::new(args.rounds);
    report.idle(&node.usage_over(std::time::Duration::from_secs(3))?);
    for workload in Workload::all(args.quick) {
        if workload.name().contains(&args.filter) {
            report.add(measure(&workload, &sides, args.rounds)?);
        }
    }
    if "import export".contains(&args.filter) {
        for row in node.transfer_rows(&sides, args.rounds, args.quick)? {
            report.add(row);
        }
    }
    if "latency".contains(&args.filter) {
        report.latency(&latency::measure(&node, if args.quick { 200 } else { 2000 })?);
    }
    if "replication".contains(&args.filter) {
        report.replication(&replication::measure(&litefs, &node, scratch.path(), args.rounds, args.quick)?);
    }
    report.load(&node.usage()?);
    print!("{report}");
    if let Some(path) = &args.json {
        std::fs::write(path, report.to_json()?).with_context(|| format!("write {}", path.display()))?;
    }
    node.stop()
}

/// Runs one row alternately on both sides.
fn measure(workload: &Workload, sides: &[Side; 2], rounds: usize) -> Result<Row> {
    let mut rates = [Vec::new(), Vec::new()];
    for side in sides {
        workload.prepare(side).with_context(|| format!("prepare {} on {}", workload.name(), side.name()))?;
    }
    for round in 0..rounds {
        // The side that goes first changes, so that neither always finds the disk warm.
        for index in [round % 2, 1 - round % 2] {
            let rate = workload
                .run(&sides[index])
                .with_context(|| format!("run {} on {}", workload.name(), sides[index].name()))?;
            rates[index].push(rate);
        }
    }
    for side in sides {
        side.remove(workload.database())?;
    }
    let [bare, litefs] = rates;
    let row = Row::new(workload.name(), workload.unit(), workload.target(), bare, litefs);
    eprintln!("{row}");
    Ok(row)
}
