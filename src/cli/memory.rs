//! The memory that the broker may use without `--memory-max`: what the system allows this process, or half of the machine.

use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// Returns the smallest of the limits of this process and half of the machine's memory, in bytes.
pub fn allowed_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "the type differs between architectures")]
    let machine = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = group_limits(&own, Path::new("/sys/fs/cgroup"));
    let resources = [Resource::As, Resource::Data, Resource::Rss];
    let processes = resources.into_iter().filter_map(|resource| getrlimit(resource).current);
    groups.into_iter().chain(processes).chain([machine / 2]).min().unwrap_or(machine / 2)
}

/// The memory limits of the control groups that a process is in, by the contents of its `/proc/PID/cgroup`.
fn group_limits(own: &str, root: &Path) -> Vec<u64> {
    let mut limits = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let (top, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut group: PathBuf = top.join(path.trim_start_matches('/'));
        // A group above may have the smaller limit.
        while group.starts_with(&top) {
            let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
            // "max" is no limit.
            limits.extend(text.trim().parse::<u64>().ok());
            if !group.pop() {
                break;
            }
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::group_limits;

    #[test]
    fn limits_of_all_groups_above_the_process_count() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let file = root.path().join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        };
        write("system.slice/memory.max", "2000\n");
        write("system.slice/weir.service/memory.max", "max\n");
        write("memory/old/memory.limit_in_bytes", "9223372036854771712\n");
        let own = "0::/system.slice/weir.service\n4:cpu,memory:/old\n1:name=systemd:/x\n";
        assert_eq!(group_limits(own, root.path()), [2_000, 9_223_372_036_854_771_712]);
    }
}
