//! `litefs verify` and `litefs repair`: looking after a data directory that no node uses.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use litefs::DbName;
use litefs::maintenance::{self, Inspection};
use litefs::store::StoreConfig;

use crate::cli::{RepairArgs, VerifyArgs};
use crate::transfer::print;

/// Prints what every database (or every named one) holds; 1 when one has a problem.
///
/// # Errors
/// While a node uses the directory; when it cannot be read, or does not hold a named database.
pub fn verify(args: &VerifyArgs) -> anyhow::Result<u8> {
    let found = maintenance::verify(&args.data_dir).with_context(|| format!("verify {}", args.data_dir.display()))?;
    if let Some(missing) = args.names.iter().find(|name| !found.iter().any(|(db, _)| db.as_str() == name.as_str())) {
        bail!("{} holds no database {missing}", args.data_dir.display());
    }
    let wanted = |db: &DbName| args.names.is_empty() || args.names.iter().any(|name| db.as_str() == name);
    let mut text = String::new();
    let mut code = 0;
    for (db, inspection) in found.iter().filter(|(db, _)| wanted(db)) {
        describe(&mut text, db, inspection)?;
        if !inspection.problems.is_empty() {
            code = 1;
        }
    }
    print(&text)?;
    Ok(code)
}

fn describe(text: &mut String, db: &DbName, found: &Inspection) -> std::fmt::Result {
    let state = if found.problems.is_empty() { "ok" } else { "PROBLEM" };
    writeln!(
        text,
        "{db}: {state}, {}, {} records, {} commits not recorded yet",
        found.pos, found.records, found.commits_without_record
    )?;
    for note in &found.notes {
        writeln!(text, "  the next start sets right: {note}")?;
    }
    for problem in &found.problems {
        writeln!(text, "  problem: {problem}")?;
    }
    Ok(())
}

/// Starts the history of a broken database again with what its files hold; the old files are kept aside.
///
/// # Errors
/// While a node uses the directory; without such a database; when its file is no SQLite database.
pub fn repair(args: &RepairArgs) -> anyhow::Result<u8> {
    let name: DbName = args.name.parse().with_context(|| format!("-name {:?}", args.name))?;
    let config = StoreConfig {
        data_dir: args.data_dir.clone(),
        compress: true,
        // Nothing is dropped meanwhile.
        retention: Duration::MAX,
        retention_interval: Duration::from_secs(3600),
        strict_verify: false,
        lost_and_found_bytes_max: u64::MAX,
    };
    let pos = maintenance::repair(config, &name).with_context(|| format!("repair {name}"))?;
    print(&format!("{name} is at {pos}\n"))?;
    Ok(0)
}
