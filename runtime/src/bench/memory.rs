//! How much memory this process takes, as the system sees it.
//!
//! **Units**: bytes. **Source**: `/proc/self/status` of Linux, which says it in kB; `statm` counts in pages, whose size
//! differs between machines. Elsewhere it is unknown.

/// The memory that this process has in use at the moment (its resident set).
pub fn resident_bytes() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The most that it ever had in use.
pub fn peak_bytes() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_says() {
        let status = "Name:\tjob\nVmHWM:\t  123456 kB\nVmRSS:\t    1972 kB\n";
        assert_eq!((field(status, "VmRSS:"), field(status, "VmHWM:")), (Some(2_019_328), Some(126_418_944)));
        assert_eq!((field("", "VmRSS:"), field("VmRSS: many kB", "VmRSS:")), (None, None));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_takes_some() {
        let resident = resident_bytes().unwrap();
        assert!(resident > 1_000_000 && resident <= peak_bytes().unwrap() + 1_000_000, "{resident}");
    }
}
