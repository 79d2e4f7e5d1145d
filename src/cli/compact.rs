//! `flowtally compact`.

use crate::config::Compact;
use crate::store::{DataDir, Store, StoreOptions};

pub(super) fn run(arguments: &Compact) -> Result<(), String> {
    let dir = &arguments.data_dir.path;
    let compact = || {
        // Opening it for writing would create a directory that is absent.
        DataDir::open_read_only(dir)?;
        let (store, _) = Store::open(dir, StoreOptions::for_offline_command())?;
        store.flush()?;
        store.compact()
    };
    compact().map_err(|e: crate::store::StoreError| e.to_string())
}
