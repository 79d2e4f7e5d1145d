//! Templates and sampling rates of exporters, kept over a restart: some exporters send them only every half hour, and
//! without them their records cannot be read.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use netflow_parser::template_store::{
    TemplateKind, TemplateStore, TemplateStoreError, TemplateStoreKey,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::exporters::{ExporterId, Protocol, SAMPLERS_MAX};
use crate::durable;

/// Templates that are kept. Beyond it, all are forgotten: exporters send them again.
const TEMPLATES_MAX: usize = 20_000;
const FILE: &str = "templates";

/// A store of templates in memory, and in a file.
#[derive(Debug)]
pub(super) struct Templates {
    path: PathBuf,
    kept: Mutex<Kept>,
    has_changed: AtomicBool,
}

#[derive(Debug, Default)]
struct Kept {
    templates: HashMap<(Arc<str>, u8, u16), Vec<u8>>,
    rates: HashMap<ExporterId, HashMap<Option<u64>, u64>>,
}

/// The content of the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Content {
    /// Exporter, kind, number and bytes.
    templates: Vec<(String, u8, u16, Vec<u8>)>,
    /// Exporter, protocol, domain, sampler and rate.
    rates: Vec<(std::net::SocketAddr, u8, u32, Option<u64>, u64)>,
}

impl Templates {
    /// Reads the file in `dir`. One that cannot be read is as good as none: the exporters send their templates again.
    pub(super) fn open(dir: &Path) -> io::Result<Arc<Templates>> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let content: Content = serde_json::from_slice(&bytes).unwrap_or_default();
        let templates = content.templates.into_iter();
        let mut kept = Kept {
            templates: templates
                .map(|(scope, kind, number, bytes)| ((scope.into(), kind, number), bytes))
                .collect(),
            rates: HashMap::new(),
        };
        for (address, protocol, domain, sampler, rate) in content.rates {
            if let Some(protocol) = Protocol::from_number(protocol) {
                let id = ExporterId {
                    address,
                    protocol,
                    domain,
                };
                kept.rates.entry(id).or_default().insert(sampler, rate);
            }
        }
        Ok(Arc::new(Templates {
            path,
            kept: Mutex::new(kept),
            has_changed: AtomicBool::new(false),
        }))
    }

    pub(super) fn rates(&self) -> HashMap<ExporterId, HashMap<Option<u64>, u64>> {
        self.kept.lock().rates.clone()
    }

    pub(super) fn keep_rate(&self, id: ExporterId, sampler: Option<u64>, rate: u64) {
        let mut kept = self.kept.lock();
        if kept.rates.len() >= TEMPLATES_MAX && !kept.rates.contains_key(&id) {
            kept.rates.clear();
        }
        let rates = kept.rates.get(&id);
        if rates.is_some_and(|rates| rates.len() >= SAMPLERS_MAX && !rates.contains_key(&sampler)) {
            return;
        }
        if kept.rates.entry(id).or_default().insert(sampler, rate) != Some(rate) {
            self.has_changed.store(true, Ordering::Relaxed);
        }
    }

    /// Writes the file if something has changed.
    pub(super) fn save(&self) -> io::Result<()> {
        if !self.has_changed.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let kept = self.kept.lock();
        let templates = kept.templates.iter();
        let rates = kept.rates.iter();
        let content = Content {
            templates: templates
                .map(|((scope, kind, number), bytes)| {
                    (scope.to_string(), *kind, *number, bytes.clone())
                })
                .collect(),
            rates: rates
                .flat_map(|(id, rates)| {
                    let of_exporter = rates.iter();
                    of_exporter.map(|(sampler, rate)| {
                        (id.address, id.protocol.number(), id.domain, *sampler, *rate)
                    })
                })
                .collect(),
        };
        drop(kept);
        let json = serde_json::to_vec(&content)?;
        let written = durable::write(&self.path, &self.path.with_extension("tmp"), &json);
        written.inspect_err(|_| self.has_changed.store(true, Ordering::Relaxed))
    }
}

impl TemplateStore for Templates {
    fn get(&self, key: &TemplateStoreKey) -> Result<Option<Vec<u8>>, TemplateStoreError> {
        Ok(self.kept.lock().templates.get(&key_of(key)).cloned())
    }

    fn put(&self, key: &TemplateStoreKey, value: &[u8]) -> Result<(), TemplateStoreError> {
        let mut kept = self.kept.lock();
        let key = key_of(key);
        if kept.templates.len() >= TEMPLATES_MAX && !kept.templates.contains_key(&key) {
            kept.templates.clear();
        }
        if kept.templates.get(&key).is_none_or(|known| known != value) {
            kept.templates.insert(key, value.to_vec());
            self.has_changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn remove(&self, key: &TemplateStoreKey) -> Result<(), TemplateStoreError> {
        if self.kept.lock().templates.remove(&key_of(key)).is_some() {
            self.has_changed.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn key_of(key: &TemplateStoreKey) -> (Arc<str>, u8, u16) {
    // Stored: never renumber them.
    let kind = match key.kind {
        TemplateKind::V9Data => 1,
        TemplateKind::V9Options => 2,
        TemplateKind::IpfixData => 3,
        TemplateKind::IpfixOptions => 4,
        TemplateKind::IpfixV9Data => 5,
        TemplateKind::IpfixV9Options => 6,
        _ => 0,
    };
    (key.scope.clone(), kind, key.template_id)
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Protocol::V5 => 5,
            Protocol::V9 => 9,
            Protocol::Ipfix => 10,
            Protocol::Sflow => 1,
        }
    }

    fn from_number(number: u8) -> Option<Protocol> {
        let all = [Protocol::V5, Protocol::V9, Protocol::Ipfix, Protocol::Sflow];
        all.into_iter().find(|protocol| protocol.number() == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_rates_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let key = TemplateStoreKey::new("127.0.0.1:9/1", TemplateKind::V9Data, 256);
        let id = ExporterId {
            address: "127.0.0.1:9".parse().unwrap(),
            protocol: Protocol::Ipfix,
            domain: 3,
        };
        let templates = Templates::open(dir.path()).unwrap();
        templates.save().unwrap();
        assert!(!dir.path().join(FILE).exists());
        templates.put(&key, &[1, 2]).unwrap();
        templates.keep_rate(id, Some(4), 100);
        templates.save().unwrap();
        let templates = Templates::open(dir.path()).unwrap();
        assert_eq!(templates.get(&key).unwrap(), Some(vec![1, 2]));
        assert_eq!(templates.rates()[&id][&Some(4)], 100);
        templates.remove(&key).unwrap();
        assert_eq!(templates.get(&key).unwrap(), None);
        fs::write(dir.path().join(FILE), "damaged").unwrap();
        assert!(Templates::open(dir.path()).unwrap().rates().is_empty());
    }
}
