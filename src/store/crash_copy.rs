//! For tests: copies of a data directory at the steps of a running store, as a kill would leave it, at random.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Step, StepHook};

/// Copies a data directory when a step is reached.
#[derive(Clone, Default)]
pub(super) struct CrashCopier(Arc<Mutex<Option<Armed>>>);

struct Armed {
    steps: Vec<Step>,
    /// How many of these steps are passed by before.
    passes: u32,
    from: PathBuf,
    to: PathBuf,
}

impl CrashCopier {
    /// For `StoreOptions::on_step`.
    pub(super) fn hook(&self) -> StepHook {
        let armed = self.0.clone();
        Arc::new(move |step| {
            let mut armed = armed.lock();
            let is_due = |armed: &mut Armed| {
                let is_one = armed.steps.contains(&step);
                let is_last = armed.passes == 0;
                armed.passes = armed.passes.saturating_sub(is_one.into());
                is_one && is_last
            };
            if let Some(Armed { from, to, .. }) = armed.take_if(is_due) {
                copy_dir(&from, &to);
            }
        })
    }

    /// Copies `from` to `to` at a random one of the next times that one of these steps is reached.
    pub(super) fn arm_one_of(&self, random: &mut StdRng, steps: &[Step], from: &Path, to: &Path) {
        *self.0.lock() = Some(Armed {
            steps: steps.to_vec(),
            passes: random.random_range(0..4),
            from: from.to_owned(),
            to: to.to_owned(),
        });
    }

    /// When `step` is reached next, copies `from` to `to`.
    pub(super) fn arm(&self, step: Step, from: &Path, to: &Path) {
        *self.0.lock() = Some(Armed {
            steps: vec![step],
            passes: 0,
            from: from.to_owned(),
            to: to.to_owned(),
        });
    }
}

/// Random numbers. The seed is printed; `FLOWTALLY_TEST_SEED` repeats one.
pub(super) fn random() -> StdRng {
    let seed = std::env::var("FLOWTALLY_TEST_SEED");
    let seed = seed.map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// Copies a directory as of one moment: if a background compaction changes it meanwhile, all of it is copied again.
fn copy_dir(from: &Path, to: &Path) {
    loop {
        let before = lengths(from);
        let copied = try_copy_dir(from, to);
        if copied.is_ok()
            && before.is_ok_and(|before| lengths(from).is_ok_and(|after| after == before))
        {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
}

/// The lengths of all files.
fn lengths(dir: &Path) -> std::io::Result<BTreeMap<PathBuf, u64>> {
    let mut lengths = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => lengths.extend(self::lengths(&entry.path())?),
            false => drop(lengths.insert(entry.path(), entry.metadata()?.len())),
        }
    }
    Ok(lengths)
}

fn try_copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => try_copy_dir(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
