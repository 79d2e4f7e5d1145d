//! The limit of open files, which bounds the network namespaces that can be watched.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files of a network namespace: two connections to the kernel for its sockets, and two for its addresses.
const FILES_OF_A_NAMESPACE: u64 = 4;
/// Open files of everything else: the spool, connections to the service, directories of /proc that are being read.
const FILES_OF_OUR_OWN: u64 = 64;
/// Network namespaces, whatever the limit. Each takes some 100 KiB.
const NAMESPACES_MAX: u64 = 4_000;

/// The limit of open files of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileLimit {
    /// With which it was started.
    before: u64,
    now: u64,
}

impl FileLimit {
    /// Raises the limit as far as this process may: to the hard one.
    pub(super) fn raise() -> FileLimit {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let before = current.unwrap_or(u64::MAX);
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        let now = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => maximum.unwrap_or(u64::MAX),
            // A sandbox may refuse it. What is there has to do.
            Err(_) => before,
        };
        FileLimit { before, now }
    }

    /// Network namespaces that can be watched: that of the agent at least.
    pub(super) fn namespaces_max(self) -> usize {
        let room = self.now.saturating_sub(FILES_OF_OUR_OWN) / FILES_OF_A_NAMESPACE;
        usize::try_from(room.clamp(1, NAMESPACES_MAX)).unwrap_or(1)
    }

    /// For the log.
    pub(super) fn describe(self) -> String {
        let raised = match self.before < self.now {
            true => format!(", raised from {}", self.before),
            false => String::new(),
        };
        format!(
            "flowtally: watches up to {} network namespaces; the limit of open files is {}{raised}",
            self.namespaces_max(),
            self.now
        )
    }

    /// Why further namespaces cannot be watched, and what to do.
    pub(super) fn why_no_more(self) -> String {
        let max = self.namespaces_max();
        match max as u64 {
            NAMESPACES_MAX => format!("an agent watches at most {max}"),
            _ => format!(
                "with a limit of {} open files, an agent watches {max}; raise the hard limit (LimitNOFILE= of its unit, or \
                 ulimit -Hn) and restart it",
                self.now
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_bounds_namespaces() {
        let limit = |now| FileLimit { before: 1024, now };
        for (files, namespaces) in [(10, 1), (64, 1), (72, 2), (1024, 240), (524_288, 4000)] {
            assert_eq!(limit(files).namespaces_max(), namespaces);
        }
        assert!(
            limit(524_288)
                .describe()
                .ends_with("524288, raised from 1024")
        );
        assert!(limit(1024).describe().ends_with(" is 1024"));
        let why = limit(1024).why_no_more();
        assert!(why.contains("1024 open files") && why.contains("LimitNOFILE="));
        assert!(limit(u64::MAX).why_no_more().ends_with("at most 4000"));
    }

    #[test]
    fn it_is_raised_to_the_hard_limit() {
        let limit = FileLimit::raise();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
        assert_eq!(limit.now, maximum.unwrap_or(u64::MAX));
        assert_eq!(FileLimit::raise().before, limit.now);
    }
}
