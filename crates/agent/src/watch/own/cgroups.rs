//! Control groups: their numbers, and what their paths say about units, containers and pods.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::facts::{CgroupFacts, PodFacts};

/// Length of a container's identifier.
const CONTAINER_ID_LENGTH: usize = 64;
/// Control groups that are remembered.
const KNOWN_MAX: usize = 100_000;

/// What is known about control groups.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// By number: the inode of its directory.
    by_id: HashMap<u64, Arc<CgroupFacts>>,
    by_path: HashMap<String, Arc<CgroupFacts>>,
}

impl Cgroups {
    /// Reads the tree of control groups if some of these are not known yet.
    pub(super) fn learn(&mut self, ids: impl Iterator<Item = u64>) {
        let mut unknown: Vec<u64> = ids.filter(|id| !self.by_id.contains_key(id)).collect();
        if unknown.is_empty() {
            return;
        }
        if self.by_id.len() >= KNOWN_MAX {
            self.by_id.clear();
            self.by_path.clear();
        }
        unknown.sort_unstable();
        let mut found = Vec::new();
        let root = mount_point(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
        let mut open: Vec<PathBuf> = root.iter().cloned().collect();
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if unknown.binary_search(&entry.ino()).is_ok() {
                    found.push((entry.ino(), entry.path()));
                }
                open.push(entry.path());
            }
        }
        for (id, path) in found {
            let path = root.as_ref().and_then(|root| path.strip_prefix(root).ok());
            let path = path.map(|path| format!("/{}", path.display()));
            if let Some(facts) = self.of_path(&path.unwrap_or_default()) {
                self.by_id.insert(id, facts);
            }
        }
        // Gone, or the root: not searched for again.
        for id in unknown {
            self.by_id.entry(id).or_default();
        }
    }

    pub(super) fn get(&self, id: u64) -> Option<Arc<CgroupFacts>> {
        let facts = self.by_id.get(&id);
        facts
            .filter(|facts| ***facts != CgroupFacts::default())
            .cloned()
    }

    pub(super) fn of_path(&mut self, path: &str) -> Option<Arc<CgroupFacts>> {
        if path.is_empty() {
            return None;
        }
        if let Some(facts) = self.by_path.get(path) {
            return Some(facts.clone());
        }
        if self.by_path.len() >= KNOWN_MAX {
            self.by_path.clear();
        }
        let facts = Arc::new(facts(path, Path::new("/")));
        self.by_path.insert(path.to_owned(), facts.clone());
        Some(facts)
    }
}

/// Where version 2 of control groups is mounted.
fn mount_point(mounts: &str) -> Option<PathBuf> {
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let path = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// What the path says. The names of containers and pods are looked up below `root`.
fn facts(path: &str, root: &Path) -> CgroupFacts {
    let segments = || path.split('/').filter(|segment| !segment.is_empty());
    let container = segments().rev().find_map(container_id);
    let pod = match path.contains("kubepods") {
        true => segments()
            .find_map(pod_uid)
            .and_then(|uid| pod_facts(&uid, root)),
        false => None,
    };
    let unit = segments().rev().find(|segment| {
        // The manager of a user's units.
        segment.ends_with(".service") && !segment.starts_with("user@")
    });
    CgroupFacts {
        unit: unit.filter(|_| container.is_none()).map(str::to_owned),
        container: container.map(|id| {
            let name = container_name(id, root);
            name.unwrap_or_else(|| id[..12].to_owned())
        }),
        pod,
    }
}

/// As in `docker-ID.scope`, `cri-containerd-ID.scope`, `libpod-ID`, and `ID`.
fn container_id(segment: &str) -> Option<&str> {
    let segment = segment.strip_suffix(".scope").unwrap_or(segment);
    let id = segment.rsplit(['-', ':']).next()?;
    let is_id = id.len() == CONTAINER_ID_LENGTH && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(id)
}

/// As in `kubepods-burstable-pod0b8f…_….slice` and `pod0b8f…-…`.
fn pod_uid(segment: &str) -> Option<String> {
    let segment = segment.strip_suffix(".slice").unwrap_or(segment);
    let (_, uid) = segment.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= 32
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then_some(uid)
}

/// From the files of Docker and Podman.
fn container_name(id: &str, root: &Path) -> Option<String> {
    let docker = root
        .join("var/lib/docker/containers")
        .join(id)
        .join("config.v2.json");
    if let Some(config) = json(&docker) {
        let name = config.get("Name")?.as_str()?;
        return Some(name.trim_start_matches('/').to_owned());
    }
    let podman = root.join("var/lib/containers/storage/overlay-containers/containers.json");
    let containers = json(&podman)?;
    let mut containers = containers.as_array()?.iter();
    let container = containers.find(|container| container["id"] == id)?;
    Some(container["names"][0].as_str()?.to_owned())
}

fn json(path: &Path) -> Option<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// From the files of the kubelet: the directory of the pod's logs has its name, and a volume of the downward API may
/// have its labels.
fn pod_facts(uid: &str, root: &Path) -> Option<PodFacts> {
    let logs = fs::read_dir(root.join("var/log/pods")).ok()?;
    let mut names = logs
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let name = names.find(|name| name.ends_with(uid))?;
    let mut parts = name.split('_');
    let (namespace, name) = (parts.next()?.to_owned(), parts.next()?.to_owned());
    let volumes = root
        .join("var/lib/kubelet/pods")
        .join(uid)
        .join("volumes/kubernetes.io~downward-api");
    let mut labels = BTreeMap::new();
    for volume in fs::read_dir(volumes).into_iter().flatten().flatten() {
        if let Ok(text) = fs::read_to_string(volume.path().join("labels")) {
            labels.extend(text.lines().filter_map(label));
        }
    }
    Some(PodFacts {
        namespace,
        name,
        labels,
    })
}

/// As in `app="checkout"`; the value is quoted as in Go.
fn label(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    Some((key.to_owned(), serde_json::from_str(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f1c6e0d2b3a5987aabbccddeeff00112233445566778899aabbccddeeff0011";
    const UID: &str = "0b8f3c1e-2a44-4d19-9d1a-77aa10b2c3d4";

    #[test]
    fn units() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service",
                Some("postgresql@15-main.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/sync.service",
                Some("sync.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/init.scope",
                None,
            ),
            ("/user.slice/user-1000.slice/session-3.scope", None),
            ("/", None),
        ] {
            assert_eq!(
                facts(path, Path::new("/none")).unit.as_deref(),
                unit,
                "{path}"
            );
        }
    }

    #[test]
    fn containers_have_the_name_of_their_runtime() {
        let root = tempfile::tempdir().unwrap();
        let docker = root.path().join("var/lib/docker/containers").join(ID);
        for path in [
            format!("/system.slice/docker-{ID}.scope"),
            format!("/docker/{ID}"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
        ] {
            let found = facts(&path, root.path());
            assert_eq!(found.container.as_deref(), Some(&ID[..12]));
            assert_eq!(found.unit, None);
        }
        fs::create_dir_all(&docker).unwrap();
        fs::write(docker.join("config.v2.json"), r#"{"ID":"x","Name":"/web"}"#).unwrap();
        let found = facts(&format!("/system.slice/docker-{ID}.scope"), root.path());
        assert_eq!(found.container.as_deref(), Some("web"));
    }

    #[test]
    fn pods_have_names_and_labels() {
        let root = tempfile::tempdir().unwrap();
        let logs = root.path().join("var/log/pods");
        fs::create_dir_all(logs.join(format!("shop_checkout-7c6d9f8b5b-x2b4z_{UID}"))).unwrap();
        let volume = root.path().join("var/lib/kubelet/pods").join(UID);
        let volume = volume.join("volumes/kubernetes.io~downward-api/info");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("labels"), "app=\"check\\\"out\"\ntier=\"web\"").unwrap();
        let slice = UID.replace('-', "_");
        for path in [
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods/besteffort/pod{UID}/{ID}"),
        ] {
            let pod = facts(&path, root.path()).pod.unwrap();
            assert_eq!(
                (&*pod.namespace, &*pod.name),
                ("shop", "checkout-7c6d9f8b5b-x2b4z")
            );
            assert_eq!(pod.labels["app"], "check\"out");
            assert_eq!(pod.labels["tier"], "web");
        }
    }

    #[test]
    fn the_mount_of_version_2_is_found() {
        let mounts =
            "tmpfs /sys/fs/cgroup tmpfs ro 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(mount_point(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("proc /proc proc rw 0 0\n"), None);
    }
}
