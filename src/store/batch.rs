//! A batch: the flows of one POST in the encoding that the journal stores, built once from the
//! request body and never converted again.

use foldhash::SharedSeed;
use foldhash::fast::SeedableRandomState;
use std::hash::{BuildHasher, Hasher};

use super::codec::{self, HOUR_BYTES};
use crate::domain::{Counters, Hour};

/// Hashes the part of a flow key after its hour. Seeded afresh in each process, so that nobody can
/// prepare names that collide.
#[derive(Clone, Debug)]
pub(super) struct KeyHasher(SeedableRandomState);

impl KeyHasher {
    pub(super) fn new() -> KeyHasher {
        static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
        let seed = *SEED.get_or_init(|| foldhash::fast::RandomState::default().hash_one(0));
        KeyHasher(SeedableRandomState::with_seed(
            seed,
            SharedSeed::global_random(),
        ))
    }

    #[inline]
    pub(super) fn hash(&self, suffix: &[u8]) -> u32 {
        let mut hasher = self.0.build_hasher();
        hasher.write(suffix);
        (hasher.finish() >> 32) as u32
    }
}

/// Validated flows, ready for the journal and the tally.
#[derive(Clone, Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Of each record's key after its hour: taken while the key is in cache and on the thread of
    /// the request, so that the one committer does not have to.
    hashes: Vec<u32>,
}

impl Batch {
    /// The stored encoding (see [`codec`]).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of flows.
    pub fn flows(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn hashes(&self) -> &[u32] {
        &self.hashes
    }
}

/// Builds a [`Batch`] flow by flow.
#[derive(Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    hashes: Vec<u32>,
    hasher: KeyHasher,
}

impl BatchBuilder {
    /// Reserves room for `bytes` bytes of encoding; it grows beyond that where it has to.
    pub fn with_capacity(bytes: usize) -> BatchBuilder {
        let mut builder = BatchBuilder {
            bytes: Vec::with_capacity(bytes),
            hashes: Vec::with_capacity(bytes / 40),
            hasher: KeyHasher::new(),
        };
        codec::push_batch_header(&mut builder.bytes);
        builder
    }

    /// Number of flows so far.
    pub fn flows(&self) -> usize {
        self.hashes.len()
    }

    /// Adds one flow. The names are UTF-8 of at most
    /// [`NAME_BYTES_MAX`](crate::domain::NAME_BYTES_MAX) bytes: the caller has checked.
    pub fn push(&mut self, hour: Hour, names: [&[u8]; 3], counters: Counters) {
        let escapes: usize = names
            .iter()
            .map(|name| name.iter().filter(|&&byte| byte == 0).count())
            .sum();
        if escapes == 0 {
            return self.push_plain(hour, names, counters);
        }
        let [src_app, dest_app, vpc_id] = names;
        let key_at = self.push_head(names, escapes, counters);
        codec::push_key(&mut self.bytes, hour, src_app, dest_app, vpc_id);
        self.push_hash(key_at);
    }

    /// Like [`BatchBuilder::push`], for names without a NUL.
    #[inline]
    pub fn push_plain(&mut self, hour: Hour, names: [&[u8]; 3], counters: Counters) {
        let key_at = self.push_head(names, 0, counters);
        codec::push_plain_key(&mut self.bytes, hour, names);
        self.push_hash(key_at);
    }

    #[inline]
    fn push_head(&mut self, names: [&[u8]; 3], escapes: usize, counters: Counters) -> usize {
        let [src_app, dest_app, vpc_id] = names;
        let key_bytes =
            HOUR_BYTES + src_app.len() + dest_app.len() + vpc_id.len() + names.len() + escapes;
        codec::push_record_head(&mut self.bytes, key_bytes, counters);
        self.bytes.len()
    }

    #[inline]
    fn push_hash(&mut self, key_at: usize) {
        let hash = self.hasher.hash(&self.bytes[key_at + HOUR_BYTES..]);
        self.hashes.push(hash);
    }

    pub fn finish(mut self) -> Batch {
        codec::set_batch_flows(&mut self.bytes, self.hashes.len() as u32);
        Batch {
            bytes: self.bytes,
            hashes: self.hashes,
        }
    }
}
