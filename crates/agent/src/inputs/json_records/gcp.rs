//! Google Cloud's VPC flow logs, as Cloud Logging exports them: a LogEntry a line.

use serde_json::Value;

use super::super::Apps;
use super::super::traffic::{Direction, End, Traffic, hour_of};
use super::fields::{address, number, seconds, text};

const PAYLOAD: &str = "jsonPayload";

pub(super) fn traffic<'a>(record: &'a Value, apps: &'a Apps) -> Result<Traffic<'a>, String> {
    let direction = match text(record, &[PAYLOAD, "reporter"]) {
        Some("SRC" | "SRC_GATEWAY") => Some(Direction::Egress),
        Some("DEST" | "DEST_GATEWAY") => Some(Direction::Ingress),
        Some(other) => {
            return Err(format!(
                "jsonPayload.reporter: {other:?} is neither SRC nor DEST"
            ));
        }
        None => None,
    };
    let end = |ip: &str, side: &str| {
        let address = address(record, &[PAYLOAD, "connection", ip])?;
        let name = name(record, side).map(Into::into);
        Ok::<_, String>(End::named(address, apps, name))
    };
    let vpc = |side: &str| text(record, &[PAYLOAD, &format!("{side}_vpc"), "vpc_name"]);
    let vpc_id = match direction {
        Some(Direction::Ingress) => vpc("dest"),
        Some(Direction::Egress) | None => vpc("src").or_else(|| vpc("dest")),
    };
    let start = [PAYLOAD, "start_time"];
    Ok(Traffic {
        source: end("src_ip", "src")?,
        destination: end("dest_ip", "dest")?,
        bytes: number(record, &[PAYLOAD, "bytes_sent"])?,
        bytes_back: 0,
        hour: hour_of(seconds(record, &start)?, "jsonPayload.start_time")?,
        vpc_id: vpc_id.unwrap_or_default().into(),
        direction,
        interface: "".into(),
    })
}

/// The Kubernetes workload or the instance at one side, `src` or `dest`.
fn name<'a>(record: &'a Value, side: &str) -> Option<&'a str> {
    let gke = format!("{side}_gke_details");
    let pod = [PAYLOAD, &gke, "pod"];
    let workload = text(
        record,
        &[pod[0], pod[1], pod[2], "pod_workload", "workload_name"],
    );
    let instance = || text(record, &[PAYLOAD, &format!("{side}_instance"), "vm_name"]);
    workload.or_else(instance)
}
