//! The names of an endpoint over time, where several agents claim it.

use std::sync::Arc;

use super::Lease;

/// Whether two agents give the endpoint different names for the same time.
pub(super) fn contradict(a: &Lease, b: &Lease) -> bool {
    a.agent != b.agent && a.app != b.app && a.from < b.to && b.from < a.to
}

/// Whether any two of the leases contradict each other.
pub(super) fn have_conflict(leases: &[Lease]) -> bool {
    let pairs = (1..).zip(leases);
    pairs
        .into_iter()
        .any(|(next, a)| leases[next..].iter().any(|b| contradict(a, b)))
}

/// The spans of time for which exactly one name is claimed, in their order. Neighbours with the same name are one span.
pub(super) fn unambiguous(leases: &[Lease]) -> Vec<(&Arc<str>, u64, u64)> {
    let mut bounds: Vec<u64> = leases.iter().flat_map(|l| [l.from, l.to]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut spans: Vec<(&Arc<str>, u64, u64)> = Vec::new();
    for pair in bounds.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let mut claimed = leases
            .iter()
            .filter(|lease| lease.from <= from && to <= lease.to);
        let Some(first) = claimed.next() else {
            continue;
        };
        if claimed.any(|lease| lease.app != first.app) {
            continue;
        }
        match spans.last_mut() {
            Some((app, _, end)) if *end == from && **app == first.app => *end = to,
            _ => spans.push((&first.app, from, to)),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use rand::RngExt as _;

    use super::*;

    fn lease(agent: u64, app: &str, from: u64, to: u64) -> Lease {
        Lease {
            agent,
            app: app.into(),
            from,
            to,
        }
    }

    fn spans(leases: &[Lease]) -> Vec<(String, u64, u64)> {
        let spans = unambiguous(leases).into_iter();
        spans
            .map(|(app, from, to)| (app.to_string(), from, to))
            .collect()
    }

    #[test]
    fn time_that_two_names_are_claimed_for_has_none() {
        let leases = [
            lease(1, "web", 10, 30),
            lease(2, "db", 25, 50),
            lease(3, "db", 50, 60),
            lease(4, "db", 70, 70),
        ];
        assert_eq!(
            spans(&leases),
            [("web".into(), 10, 25), ("db".into(), 30, 60)]
        );
        assert!(have_conflict(&leases));
        assert!(!have_conflict(&leases[1..]));
        assert_eq!(spans(&[]), []);
    }

    /// As when a floating address has the same service behind it on two hosts.
    #[test]
    fn two_agents_may_claim_one_name() {
        let leases = [lease(1, "lb", 10, 30), lease(2, "lb", 20, 40)];
        assert_eq!(spans(&leases), [("lb".into(), 10, 40)]);
        assert!(!have_conflict(&leases));
    }

    /// Each moment is named as a look at all leases would name it.
    #[test]
    fn spans_agree_with_each_moment() {
        let mut rng = rand::rng();
        for _ in 0..2000 {
            let leases: Vec<Lease> = (0..rng.random_range(0..6))
                .map(|agent| {
                    let (a, b) = (rng.random_range(0..12), rng.random_range(0..12));
                    let app = ["x", "y", "z"][rng.random_range(0..3)];
                    lease(agent, app, a.min(b), a.max(b))
                })
                .collect();
            let spans = spans(&leases);
            // Between two whole numbers, so that ends do not matter.
            for moment in 0..12 {
                let covers = |from: u64, to: u64| from <= moment && moment < to;
                let mut apps: Vec<&str> = leases
                    .iter()
                    .filter(|l| covers(l.from, l.to))
                    .map(|l| &*l.app)
                    .collect();
                apps.sort_unstable();
                apps.dedup();
                let named: Vec<&str> = spans
                    .iter()
                    .filter(|(_, from, to)| covers(*from, *to))
                    .map(|(app, ..)| app.as_str())
                    .collect();
                let expected = if apps.len() == 1 { apps } else { Vec::new() };
                assert_eq!(named, expected, "{moment} of {leases:?}");
            }
        }
    }
}
