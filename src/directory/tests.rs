use super::*;

const NOW: u64 = 10_000_000;

fn directory() -> Directory {
    Directory {
        started_at: NOW - 2 * START_MS,
        ..Directory::new(1 << 20)
    }
}

fn claim(app: &str, endpoint: &str, from: u64, to: u64) -> Claim {
    let endpoint: SocketAddr = endpoint.parse().unwrap();
    Claim {
        app: app.into(),
        address: endpoint.ip(),
        port: endpoint.port(),
        from,
        to,
    }
}

fn request(agent: &str, confirmed_until: u64, claims: &[Claim]) -> DirectoryRequest {
    DirectoryRequest {
        agent: agent.into(),
        vpc_id: "v".into(),
        confirmed_until,
        claims: claims.to_vec(),
        questions: Vec::new(),
    }
}

fn names(directory: &Directory, vpc_id: &str, endpoint: &str, from: u64, to: u64) -> Vec<Claim> {
    let endpoint: SocketAddr = endpoint.parse().unwrap();
    let question = Question {
        address: endpoint.ip(),
        port: endpoint.port(),
        from,
        to,
    };
    directory.names_at(vpc_id, &[question], NOW)
}

/// The address was moved from one host to another: each time has its name, and the time between has none.
#[test]
fn an_address_that_changes_hands_has_a_name_at_each_time() {
    let directory = directory();
    let web = claim("web", "10.0.0.7:80", NOW - 50, NOW - 30);
    let db = claim("db", "10.0.0.7:80", NOW - 20, NOW);
    for (agent, claim) in [("a", &web), ("b", &db)] {
        let request = request(agent, NOW, std::slice::from_ref(claim));
        directory.renew_at(request, NOW).unwrap();
    }
    let of = |from, to| names(&directory, "v", "10.0.0.7:80", from, to);
    assert_eq!(of(NOW - 40, NOW - 35), std::slice::from_ref(&web));
    assert_eq!(of(NOW - 10, NOW - 5), std::slice::from_ref(&db));
    assert_eq!(of(NOW - 28, NOW - 22), []);
    assert_eq!(of(NOW - 40, NOW), [web, db]);
    assert_eq!(names(&directory, "v", "10.0.0.7:81", 0, NOW), []);
    assert_eq!(names(&directory, "other", "10.0.0.7:80", 0, NOW), []);
}

#[test]
fn a_request_replaces_all_claims_of_its_agent() {
    let directory = directory();
    let claims = [
        claim("web", "10.0.0.7:80", NOW - 50, NOW),
        claim("db", "[fd00::7]:5432", NOW - 50, NOW),
    ];
    directory.renew_at(request("a", NOW, &claims), NOW).unwrap();
    let totals = directory.totals();
    assert_eq!((totals.agents, totals.claims), (1, 2));
    directory
        .renew_at(request("a", NOW, &claims[1..]), NOW)
        .unwrap();
    assert_eq!(names(&directory, "v", "10.0.0.7:80", 0, NOW), []);
    assert_eq!(
        names(&directory, "v", "[fd00::7]:5432", 0, NOW),
        &claims[1..]
    );
    directory.renew_at(request("a", NOW, &[]), NOW).unwrap();
    let state = directory.state.lock();
    assert_eq!((state.endpoints.len(), state.claims), (0, 0));
    assert_eq!(state.bytes, AGENT_BYTES + 1);
}

/// What nobody will claim any more needs no waiting. An agent that is gone must not hold back all others.
#[test]
fn the_time_up_to_which_claims_are_complete() {
    let directory = directory();
    let renew = |agent, until, at| {
        directory.renew_at(request(agent, until, &[]), at).unwrap();
    };
    let complete = |at| directory.complete_until_at("v", at);
    assert_eq!(complete(NOW), 0);
    renew("a", NOW - 10, NOW);
    renew("b", NOW - 500, NOW);
    // Its first request.
    renew("c", 0, NOW);
    assert_eq!(complete(NOW), NOW - 500);
    assert_eq!(directory.complete_until_at("other", NOW), 0);
    let later = NOW + SILENCE_MS_MAX + 1;
    renew("a", later - 10, later);
    assert_eq!(complete(later), later - 10);
    // After a start, agents that have not been heard yet may be there.
    let fresh = Directory::new(1 << 20);
    fresh.renew(request("a", fresh.started_at, &[])).unwrap();
    assert_eq!(fresh.complete_until("v"), 0);
}

#[test]
fn old_claims_and_silent_agents_are_removed() {
    let directory = directory();
    let old = claim("web", "10.0.0.7:80", 5, NOW - CLAIM_KEPT_MS - 1);
    let future = claim("web", "10.0.0.7:80", NOW + 1, NOW + 2);
    directory
        .renew_at(request("a", NOW, &[old, future]), NOW)
        .unwrap();
    assert_eq!(directory.totals().claims, 0);
    let longer = claim("web", "10.0.0.7:80", NOW - 5, NOW + 1000);
    directory
        .renew_at(request("a", NOW, &[longer]), NOW)
        .unwrap();
    let named = names(&directory, "v", "10.0.0.7:80", NOW, NOW);
    assert_eq!(named[0].to, NOW, "nobody knows the future");
    let later = NOW + CLAIM_KEPT_MS + 1;
    directory.renew_at(request("b", later, &[]), later).unwrap();
    let totals = directory.totals();
    assert_eq!((totals.agents, totals.claims), (1, 0));
}

#[test]
fn memory_is_bounded() {
    let directory = Directory {
        bytes_max: 5 * LEASE_BYTES,
        ..directory()
    };
    let claims: Vec<Claim> = (1..10)
        .map(|port| claim("web", &format!("10.0.0.7:{port}"), NOW - 5, NOW))
        .collect();
    directory
        .renew_at(request("a", NOW, &claims[..2]), NOW)
        .unwrap();
    let full = directory
        .renew_at(request("b", NOW, &claims), NOW)
        .unwrap_err();
    assert!(full.to_string().contains("2 claims"), "{full}");
    // What was refused may be missing.
    assert_eq!(directory.complete_until_at("v", NOW + 1), 0);
    let later = NOW + SILENCE_MS_MAX;
    directory.renew_at(request("a", later, &[]), later).unwrap();
    assert_eq!(directory.complete_until_at("v", later), later);
}

/// Claims of others must not be pushed out, so that the stranger's name is the only one.
#[test]
fn a_stranger_cannot_take_an_endpoint_over() {
    let directory = directory();
    let endpoint = "10.0.0.7:80";
    let victim = [claim("web", endpoint, NOW - 500, NOW - 10)];
    directory.renew_at(request("a", NOW, &victim), NOW).unwrap();
    let many: Vec<Claim> = (0..100)
        .map(|n| claim("evil", endpoint, NOW - 1000 + n, NOW))
        .collect();
    for n in 0..10 {
        let stranger = request(&format!("b{n}"), NOW, &many);
        directory.renew_at(stranger, NOW).unwrap();
    }
    assert_eq!(directory.totals().claims, LEASES_PER_ENDPOINT_MAX);
    assert_eq!(names(&directory, "v", endpoint, NOW - 400, NOW - 300), []);
    // Those of one agent are bounded as well.
    let own = request("c", NOW, &vec![claim("db", "10.0.0.8:1", NOW - 9, NOW); 40]);
    directory.renew_at(own, NOW).unwrap();
    let claims = LEASES_PER_ENDPOINT_MAX + LEASES_PER_AGENT_MAX;
    assert_eq!(directory.totals().claims, claims);
}

/// An agent that was restarted does not know the service's clock at first.
#[test]
fn the_first_request_of_an_agent_takes_nothing_back() {
    let directory = directory();
    let web = claim("web", "10.0.0.7:80", NOW - 50, NOW - 30);
    let before = request("a", NOW, std::slice::from_ref(&web));
    directory.renew_at(before, NOW).unwrap();
    directory.renew_at(request("a", 0, &[]), NOW).unwrap();
    assert_eq!(names(&directory, "v", "10.0.0.7:80", 0, NOW), [web]);
    directory.renew_at(request("a", NOW, &[]), NOW).unwrap();
    assert_eq!(names(&directory, "v", "10.0.0.7:80", 0, NOW), []);
}

#[test]
fn contradictions_are_counted() {
    let directory = directory();
    for (agent, app) in [("a", "web"), ("b", "evil")] {
        let claims = [claim(app, "10.0.0.7:80", NOW - 50, NOW)];
        directory
            .renew_at(request(agent, NOW, &claims), NOW)
            .unwrap();
    }
    assert_eq!(directory.totals().conflicts, 1);
    assert_eq!(names(&directory, "v", "10.0.0.7:80", 0, NOW), []);
}

#[test]
fn invalid_requests_are_named() {
    let wrong = |change: fn(&mut DirectoryRequest)| {
        let mut request = request("a", NOW, &[claim("web", "10.0.0.7:80", 1, 2)]);
        change(&mut request);
        Directory::validate(&request).map_err(|BadClaims(what)| what)
    };
    assert_eq!(wrong(|_| {}), Ok(()));
    for (change, what) in [
        (
            (|r| r.agent.clear()) as fn(&mut DirectoryRequest),
            "agent: it has 0 bytes",
        ),
        (|r| r.vpc_id = "x".repeat(1025), "vpc_id: it has 1025 bytes"),
        (
            |r| r.claims[0].app.clear(),
            "claims[0]: app: it has 0 bytes",
        ),
        (|r| r.claims[0].to = 0, "claims[0]: from is 1, after to: 0"),
    ] {
        let error = wrong(change).unwrap_err();
        assert!(error.starts_with(what), "{error}");
    }
}
