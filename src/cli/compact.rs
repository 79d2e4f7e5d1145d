//! `flowtally compact`.

use crate::config::Compact;
use crate::store::{Store, StoreOptions};

pub(super) fn run(arguments: &Compact) -> Result<(), String> {
    let dir = &arguments.data_dir.path;
    if !dir.exists() {
        return Err(format!("there is no data directory {}", dir.display()));
    }
    let compact = || {
        let (store, _) = Store::open(dir, StoreOptions::in_between())?;
        store.flush()?;
        store.compact()
    };
    compact().map_err(|e: crate::store::StoreError| e.to_string())
}
