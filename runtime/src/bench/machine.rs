//! What a measurement was made on: without it, no figure means anything to anyone else.
//!
//! **Source**: `/proc` of Linux; elsewhere the processor is `unknown`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A machine in words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The model of the processor.
    pub cpu: String,
    /// How many threads can run at once in this process.
    pub cores: usize,
    /// The operating system with its version.
    pub os: String,
}

impl Machine {
    /// This machine.
    pub fn this() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let kernel = || {
            Some(format!("{} {}", read("/proc/sys/kernel/ostype")?.trim(), read("/proc/sys/kernel/osrelease")?.trim()))
        };
        Machine {
            cpu: read("/proc/cpuinfo").and_then(|info| cpu(&info)).unwrap_or_else(|| "unknown".to_string()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            os: kernel().unwrap_or_else(|| std::env::consts::OS.to_string()),
        }
    }
}

/// The model as x86 names it; ARM has only numbers there.
fn cpu(info: &str) -> Option<String> {
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.trim().to_string())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.cores == 1 { "" } else { "s" };
        write!(f, "{}, {} core{plural}, {}", self.cpu, self.cores, self.os)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_says() {
        let info = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: AMD EPYC 9R14\nmodel name\t: another\n";
        assert_eq!(cpu(info).as_deref(), Some("AMD EPYC 9R14"));
        assert_eq!(cpu("processor\t: 0\nCPU part\t: 0xd40\n"), None);
    }

    #[test]
    fn this_machine_has_a_core_and_a_system() {
        let machine = Machine::this();
        assert!(machine.cores >= 1 && !machine.os.is_empty() && !machine.cpu.is_empty(), "{machine}");
    }
}
