use super::*;

fn listener(cookie: u64, local: &str, app: &str) -> Listener {
    Listener {
        cookie,
        local: local.parse().unwrap(),
        is_v6_only: false,
        app: (!app.is_empty()).then(|| app.into()),
    }
}

fn web(cookie: u64) -> Listener {
    listener(cookie, "0.0.0.0:80", "web")
}

fn at(moment: u64) -> Span {
    Span {
        from: moment,
        to: moment + 1,
    }
}

/// What a look finds on a host with the address 10.0.0.7.
fn look(moment: u64, listeners: &[Listener]) -> Look {
    Look {
        at: at(moment),
        held: held(&[("10.0.0.7", 5)]),
        lost: Vec::new(),
        listeners: listeners.to_vec(),
        stopped: StoppedListeners::default(),
    }
}

fn held(addresses: &[(&str, u64)]) -> HashMap<IpAddr, Held> {
    let addresses = addresses.iter().map(|(address, since)| {
        let held = Held {
            since: *since,
            stamp: None,
        };
        (address.parse().unwrap(), held)
    });
    addresses.collect()
}

fn lost(addresses: &[(&str, u64, u64)]) -> Vec<Lost> {
    let addresses = addresses.iter().map(|(address, since, until)| Lost {
        address: address.parse().unwrap(),
        since: *since,
        until: *until,
    });
    addresses.collect()
}

impl Look {
    /// Sockets of port 80 have ended: the cookie of each, and when.
    fn with_stopped(mut self, sockets: &[(u64, u64)]) -> Look {
        for (cookie, at) in sockets {
            self.stopped.add(80, *cookie, *at);
        }
        self
    }

    fn with_lost_messages(mut self) -> Look {
        self.stopped.lose(self.at.to);
        self
    }

    fn with_addresses(mut self, held: &[(&str, u64)], lost: &[(&str, u64, u64)]) -> Look {
        self.held = self::held(held);
        self.lost = self::lost(lost);
        self
    }
}

/// All claims: application, endpoint, from, to.
fn all(claims: &Claims) -> Vec<(String, String, u64, u64)> {
    let all = claims.all();
    let mut all: Vec<_> = all
        .map(|c| (c.app.to_string(), c.endpoint.to_string(), c.from, c.to))
        .collect();
    all.sort();
    all
}

fn claim(app: &str, from: u64, to: u64) -> (String, String, u64, u64) {
    (app.to_owned(), "10.0.0.7:80".to_owned(), from, to)
}

#[test]
fn a_claim_lasts_from_look_to_look() {
    let mut claims = Claims::default();
    let mut found = |look| {
        claims.look(1, look);
        all(&claims)
    };
    // Since when it is there is not known at the first look.
    assert_eq!(found(look(100, &[web(1)])), [claim("web", 101, 101)]);
    assert_eq!(found(look(200, &[web(1)])), [claim("web", 101, 200)]);
    // Nobody else had the port.
    let closed = look(300, &[]).with_stopped(&[(1, 250)]);
    assert_eq!(found(closed), [claim("web", 101, 300)]);
    assert_eq!(found(look(400, &[])), [claim("web", 101, 300)]);
    // The port was free, so it was this one in between.
    let first = claim("web", 101, 300);
    assert_eq!(
        found(look(500, &[web(2)])),
        [first.clone(), claim("web", 401, 500)]
    );
    // Nobody knows when the other one began; at the latest when this one had ended.
    let other = listener(3, "0.0.0.0:80", "other");
    assert_eq!(
        found(look(600, &[other]).with_stopped(&[(2, 550)])),
        [
            claim("other", 550, 600),
            first.clone(),
            claim("web", 401, 500)
        ]
    );
    // It has ended as well, and nobody knows when: without a message it may have handed its socket over.
    assert_eq!(
        found(look(700, &[web(4)])),
        [
            claim("other", 550, 600),
            first,
            claim("web", 401, 500),
            claim("web", 701, 701)
        ]
    );
}

/// A new version of a program takes over from the old one.
#[test]
fn a_claim_goes_on_if_only_the_socket_is_another_one() {
    let mut claims = Claims::default();
    claims.look(1, look(100, &[web(1)]));
    claims.look(1, look(200, &[web(2)]).with_stopped(&[(1, 150)]));
    assert_eq!(all(&claims), [claim("web", 101, 200)]);
    // A third one, which was never seen, may have been another application's.
    claims.look(1, look(300, &[web(3)]).with_stopped(&[(2, 230), (9, 250)]));
    assert_eq!(
        all(&claims),
        [claim("web", 101, 200), claim("web", 250, 300)]
    );
    // Also beside this one, if they share the port.
    claims.look(1, look(400, &[web(3)]).with_stopped(&[(10, 350)]));
    assert_eq!(all(&claims)[2], claim("web", 350, 400));
    // It has ended right after the look: its message belongs to this one.
    claims.look(1, look(500, &[web(3)]).with_stopped(&[(3, 501)]));
    assert_eq!(all(&claims)[2], claim("web", 350, 500));
}

#[test]
fn without_messages_only_one_socket_proves_who_was_there() {
    let mut claims = Claims::default();
    claims.look(1, look(100, &[web(1)]));
    claims.look(1, look(200, &[web(1)]).with_lost_messages());
    assert_eq!(all(&claims), [claim("web", 101, 200)]);
    claims.look(1, look(300, &[web(2)]).with_lost_messages());
    assert_eq!(
        all(&claims),
        [claim("web", 101, 200), claim("web", 301, 301)]
    );
    // Two that share the port: there may have been a third one.
    claims.look(1, look(400, &[web(2), web(3)]));
    claims.look(1, look(500, &[web(2), web(3)]));
    claims.look(1, look(600, &[web(2), web(3)]).with_lost_messages());
    assert_eq!(
        all(&claims)[1..],
        [claim("web", 301, 500), claim("web", 601, 601)]
    );
    claims.look(1, look(700, &[]).with_lost_messages());
    assert_eq!(all(&claims).len(), 2, "nobody knows until when");
}

#[test]
fn an_address_that_is_lost_ends_its_claims() {
    let mut claims = Claims::default();
    claims.look(1, look(100, &[web(1)]));
    let mut found = |moment, held: &[(&str, u64)], lost: &[(&str, u64, u64)]| {
        claims.look(1, look(moment, &[web(1)]).with_addresses(held, lost));
        all(&claims)
    };
    let first = claim("web", 101, 150);
    assert_eq!(
        found(200, &[], &[("10.0.0.7", 5, 150)]),
        std::slice::from_ref(&first)
    );
    // Back again.
    assert_eq!(
        found(300, &[("10.0.0.7", 250)], &[]),
        [first.clone(), claim("web", 250, 300)]
    );
    // Lost and regained within one interval.
    let second = claim("web", 250, 340);
    assert_eq!(
        found(400, &[("10.0.0.7", 360)], &[("10.0.0.7", 250, 340)]),
        [first.clone(), second.clone(), claim("web", 360, 400)]
    );
    // Lost after the sockets were listed: what listened then is known until then.
    assert_eq!(
        found(500, &[], &[("10.0.0.7", 360, 540)]),
        [first, second, claim("web", 360, 500)]
    );
    assert_eq!(claims.complete_until(), Some(500));
    claims.keep(&HashSet::new(), 500);
    assert_eq!(claims.complete_until(), None);
    assert!(claims.take_changed() && !claims.take_changed());
    assert_eq!((claims.open_len(), claims.closed.len()), (0, 3));
    claims.keep(&HashSet::new(), 500 + KEPT_MS);
    assert_eq!(claims.closed.len(), 1);
}

/// It was never there at a look.
#[test]
fn an_address_is_claimed_for_as_long_as_it_was_there() {
    let mut claims = Claims::default();
    claims.look(1, look(100, &[web(1)]).with_addresses(&[], &[]));
    let moves = [("10.0.0.7", 110, 120), ("10.0.0.7", 150, 190)];
    claims.look(1, look(200, &[web(1)]).with_addresses(&[], &moves));
    let both = [claim("web", 110, 120), claim("web", 150, 190)];
    assert_eq!(all(&claims), both);
    // Whoever listened meanwhile is not known.
    let other = listener(2, "0.0.0.0:80", "other");
    let lost = [("10.0.0.7", 210, 290)];
    let other = std::slice::from_ref(&other);
    claims.look(1, look(300, other).with_addresses(&[], &lost));
    assert_eq!(all(&claims), both);
    // The last part of the time is.
    let lost = [("10.0.0.7", 310, 390)];
    let shared = look(400, other).with_stopped(&[(9, 350)]);
    claims.look(1, shared.with_addresses(&[], &lost));
    assert_eq!(all(&claims)[0], claim("other", 350, 390));
}

/// Nobody has watched in between.
#[test]
fn after_a_restart_only_what_is_the_same_is_claimed_for_the_time_before() {
    let restarted = || {
        let mut claims = Claims::default();
        claims.look(1, look(100, &[web(1)]));
        claims.look(1, look(200, &[web(1)]));
        for look in claims.looks.values_mut() {
            look.is_before_restart = true;
        }
        claims
    };
    let found = |look| {
        let mut claims = restarted();
        claims.look(1, look);
        all(&claims)
    };
    assert_eq!(found(look(900, &[web(1)])), [claim("web", 101, 900)]);
    let before = claim("web", 101, 200);
    // The address may have been at another host.
    assert_eq!(
        found(look(900, &[web(1)]).with_addresses(&[("10.0.0.7", 899)], &[])),
        [before.clone(), claim("web", 899, 900)]
    );
    // The port may have been another application's.
    assert_eq!(
        found(look(900, &[web(2)])),
        [before.clone(), claim("web", 901, 901)]
    );
    assert_eq!(
        found(look(900, &[web(1), web(2)])),
        [before.clone(), claim("web", 901, 901)]
    );
    assert_eq!(
        found(look(900, &[listener(1, "0.0.0.0:80", "other")])),
        [claim("other", 901, 901), before.clone()]
    );
    // Until when they were there is not known.
    assert_eq!(found(look(900, &[])), std::slice::from_ref(&before));
    assert_eq!(
        found(look(900, &[web(1)]).with_addresses(&[], &[])),
        std::slice::from_ref(&before)
    );
    // It is a look as any other after that.
    let mut claims = restarted();
    claims.look(1, look(900, &[]));
    claims.look(1, look(1000, &[web(3)]));
    assert_eq!(all(&claims), [before, claim("web", 901, 1000)]);
}

#[test]
fn a_look_that_finds_the_same_needs_no_new_file() {
    let mut claims = Claims::default();
    let mut is_unsaved = |look| {
        claims.is_unsaved = false;
        claims.look(1, look);
        claims.is_unsaved
    };
    assert!(is_unsaved(look(100, &[web(1)])));
    assert!(!is_unsaved(look(200, &[web(1)])));
    // The claim is the same, but another socket would have to prove it.
    assert!(is_unsaved(look(300, &[web(2)]).with_stopped(&[(1, 250)])));
    let addresses = [("10.0.0.7", 5), ("10.0.0.8", 350)];
    let more = || look(400, &[web(2)]).with_addresses(&addresses, &[]);
    assert!(is_unsaved(more()));
    assert!(!is_unsaved(more()));
}

#[test]
fn the_socket_that_takes_the_connection_has_the_name() {
    let of = |listeners: &[Listener]| {
        let mut claims = Claims::default();
        let addresses = [("10.0.0.7", 0), ("fd00::7", 0)];
        claims.look(1, look(100, listeners).with_addresses(&addresses, &[]));
        let names = claims.all().map(|of| format!("{} {}", of.endpoint, of.app));
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let specific = [
        listener(1, "0.0.0.0:80", "any"),
        listener(2, "10.0.0.7:80", "one"),
        listener(3, "127.0.0.1:81", "local"),
    ];
    assert_eq!(of(&specific), ["10.0.0.7:80 one"]);
    let both = listener(1, "[::]:443", "web");
    assert_eq!(
        of(std::slice::from_ref(&both)),
        ["10.0.0.7:443 web", "[fd00::7]:443 web"]
    );
    let v6_only = Listener {
        is_v6_only: true,
        ..both
    };
    assert_eq!(of(&[v6_only]), ["[fd00::7]:443 web"]);
    let shared = [
        listener(1, "0.0.0.0:90", "a"),
        listener(2, "0.0.0.0:90", "b"),
        listener(3, "0.0.0.0:91", ""),
    ];
    assert_eq!(of(&shared), [""; 0]);
}

/// While the socket that is bound to the address was replaced, the other one took connections to it.
#[test]
fn a_socket_behind_another_one_may_take_its_place_for_a_moment() {
    let any = || listener(1, "0.0.0.0:80", "any");
    let one = |cookie| listener(cookie, "10.0.0.7:80", "one");
    let mut claims = Claims::default();
    claims.look(1, look(100, &[any(), one(2)]));
    claims.look(1, look(200, &[any(), one(2)]));
    assert_eq!(all(&claims), [claim("one", 101, 200)]);
    claims.look(1, look(300, &[any(), one(3)]).with_stopped(&[(2, 250)]));
    assert_eq!(
        all(&claims),
        [claim("one", 101, 200), claim("one", 301, 301)]
    );
}

#[test]
fn claims_are_bounded() {
    let mut claims = Claims::default();
    let ports = u16::try_from(CLAIMS_MAX).unwrap();
    let of_port = |port: u16| listener(port.into(), &format!("0.0.0.0:{port}"), "web");
    let all: Vec<Listener> = (1..=ports).map(of_port).collect();
    claims.look(1, look(100, &all));
    claims.look(1, look(200, &all));
    let more = [all, vec![of_port(ports + 1)]].concat();
    claims.look(1, look(300, &more));
    claims.look(2, look(300, &[web(1)]));
    claims.keep(&[1, 2].into(), 300);
    assert_eq!((claims.open_len(), claims.closed.len()), (CLAIMS_MAX, 0));
    assert!(
        claims
            .all()
            .all(|claim| (claim.from, claim.to) == (101, 300))
    );
}
