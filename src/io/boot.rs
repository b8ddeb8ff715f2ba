//! Which boot of the system this is.

use crate::time::BootId;
#[cfg(any(target_os = "linux", target_os = "android", test))]
use crate::time::NANOS;

/// The kernel's id of this boot (`proc_sys_kernel(5)`), with how far its boot clock is set ahead in
/// this time namespace (`time_namespaces(7)`): where both are the same, the clock is. (The number
/// of a namespace says nothing: the kernel gives it out again.) Read once: a process stays in its
/// time namespace.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn boot_id() -> Option<BootId> {
    static ID: std::sync::OnceLock<Option<BootId>> = std::sync::OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
        // Kernels before 5.6 have no time namespaces.
        let Ok(own) = std::fs::read_link("/proc/self/ns/time") else { return BootId::new(id) };
        // The offsets are those of the namespace of its children, and may be of another one.
        let of_children = std::fs::read_link("/proc/self/ns/time_for_children").ok()?;
        let offsets = std::fs::read_to_string("/proc/self/timens_offsets").ok()?;
        let offset = offset_in(&offsets).filter(|_| own == of_children)?;
        BootId::new(id ^ offset.cast_unsigned())
    })
}

/// How many nanoseconds the boot clock is set ahead, by the text of `timens_offsets`.
#[cfg(any(target_os = "linux", target_os = "android", test))]
fn offset_in(text: &str) -> Option<i128> {
    let line = text.lines().find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanos) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(i128::from(seconds) * 1000 * i128::from(NANOS) + i128::from(nanos))
}

/// Unknown: the clock that is read here begins with the process.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn boot_id() -> Option<BootId> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_read() {
        let text = "monotonic           1         2\nboottime     -3         4\n";
        assert_eq!(offset_in(text), Some(4 - 3_000_000_000));
        assert_eq!(offset_in("monotonic 1 2\n"), None);
        assert_eq!(offset_in("boottime 1 x\n"), None);
    }
}
