//! Processes, as others can know them again.

/// When a process began, in ticks since boot; `None` when there is none, or only its remains.
pub fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// This machine since it was started, and the namespace in which its process ids hold; empty where
/// the system does not tell.
pub fn machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    match (boot, namespace) {
        (Ok(boot), Ok(namespace)) => format!("{} {}", boot.trim(), namespace.display()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_again_until_it_has_ended() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let began = start_of(child.id());
        assert!(began.is_some());
        assert_eq!(start_of(child.id()), began);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_ne!(start_of(child.id()), began);
        assert_eq!(machine(), machine());
    }
}
