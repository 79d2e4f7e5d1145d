//! The hour that a flow belongs to.

use std::fmt;

/// The hour that a flow belongs to: `0 ..= Hour::MAX`. Senders decide whether it counts from midnight or from the
/// epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(u32);

impl Hour {
    /// The largest hour. `u32::MAX` is reserved as the prefix of keys that are not flow keys.
    pub const MAX: u32 = u32::MAX - 1;

    /// `None` if `hour` is larger than [`Hour::MAX`].
    pub fn new(hour: u64) -> Option<Hour> {
        match u32::try_from(hour) {
            Ok(hour) if hour <= Hour::MAX => Some(Hour(hour)),
            _ => None,
        }
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_stop_one_short_of_u32() {
        assert_eq!(Hour::new(4_294_967_294).map(Hour::get), Some(4_294_967_294));
        assert_eq!(Hour::new(4_294_967_295), None);
        assert_eq!(Hour::new(u64::MAX), None);
    }
}
