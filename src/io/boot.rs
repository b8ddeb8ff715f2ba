//! Which boot of the system this is.

use crate::time::BootId;

/// The kernel's id of this boot (`proc_sys_kernel(5)`), with the number of the time namespace in
/// it, since each has a boot clock of its own (`time_namespaces(7)`). Read once: a process stays in
/// its time namespace.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn boot_id() -> Option<BootId> {
    static ID: std::sync::OnceLock<Option<BootId>> = std::sync::OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()?;
        // Kernels before 5.6 have no time namespaces.
        let namespace = rustix::fs::stat("/proc/self/ns/time");
        let namespace = namespace.map_or(0, |stat| super::os::identity_in(&stat).1);
        BootId::new(id ^ u128::from(namespace))
    })
}

/// Unknown: the clock that is read here begins with the process.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn boot_id() -> Option<BootId> {
    None
}
