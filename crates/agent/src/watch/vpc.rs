//! The VPC of this instance, from the file that cloud-init leaves on it.

use std::path::Path;

use serde_json::Value;

/// What cloud-init knows about the instance.
const INSTANCE_DATA: &str = "/run/cloud-init/instance-data.json";

/// The VPC of the first network interface, on AWS; `None` elsewhere.
pub(super) fn of_this_instance() -> Option<String> {
    of_file(Path::new(INSTANCE_DATA))
}

fn of_file(path: &Path) -> Option<String> {
    let data: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let interfaces = data
        .pointer("/ds/meta_data/network/interfaces/macs")?
        .as_object()?;
    let number = |interface: &Value| {
        interface["device-number"]
            .as_str()
            .and_then(|number| number.parse::<u32>().ok())
    };
    let first = interfaces
        .values()
        .min_by_key(|interface| number(interface).unwrap_or(u32::MAX))?;
    Some(first["vpc-id"].as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_interface_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instance-data.json");
        assert_eq!(of_file(&path), None);
        let data = r#"{"ds":{"meta_data":{"network":{"interfaces":{"macs":{
            "02:00:00:00:00:01":{"device-number":"1","vpc-id":"vpc-other"},
            "02:00:00:00:00:02":{"device-number":"0","vpc-id":"vpc-0a1b"}}}}}}}"#;
        std::fs::write(&path, data).unwrap();
        assert_eq!(of_file(&path).as_deref(), Some("vpc-0a1b"));
        std::fs::write(&path, "{}").unwrap();
        assert_eq!(of_file(&path), None);
    }
}
