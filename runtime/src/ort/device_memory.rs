//! How much memory is in use where a session computes.

use std::ffi::{c_int, c_uint, c_void};

use dijiang_format::serving::Device;

/// Bytes in use: of the processor's memory what this process has of its own, of a GPU's memory what all have.
/// `None` where the system does not tell.
pub fn memory_in_use(device: Device) -> Option<u64> {
    match device {
        Device::Cpu => anonymous(&std::fs::read_to_string("/proc/self/status").ok()?),
        Device::Cuda(index) => on_gpu(index),
    }
}

/// `RssAnon: 123 kB`
fn anonymous(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// `nvmlMemory_t`
#[repr(C)]
#[derive(Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

fn on_gpu(index: u32) -> Option<u64> {
    type Init = unsafe extern "C" fn() -> c_int;
    type Handle = unsafe extern "C" fn(c_uint, *mut *mut c_void) -> c_int;
    type Info = unsafe extern "C" fn(*mut c_void, *mut Memory) -> c_int;
    let (mut device, mut found) = (std::ptr::null_mut(), Memory::default());
    // SAFETY: the library is NVIDIA's management library, whose functions have had these signatures since its first
    // release; the device is one that it gave, and the memory is of the layout that it writes.
    let status = unsafe {
        let library = libloading::Library::new("libnvidia-ml.so.1").ok()?;
        let init: libloading::Symbol<'_, Init> = library.get(b"nvmlInit_v2\0").ok()?;
        let handle: libloading::Symbol<'_, Handle> = library.get(b"nvmlDeviceGetHandleByIndex_v2\0").ok()?;
        let info: libloading::Symbol<'_, Info> = library.get(b"nvmlDeviceGetMemoryInfo\0").ok()?;
        let mut status = init();
        status |= handle(index, &raw mut device);
        if status == 0 { info(device, &raw mut found) } else { status }
    };
    (status == 0).then_some(found.used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_tells_what_is_anonymous() {
        assert_eq!(anonymous("VmRSS:\t  90 kB\nRssAnon:\t      12 kB\n"), Some(12 * 1024));
        assert_eq!(anonymous("VmRSS:\t  90 kB\n"), None);
        let before = memory_in_use(Device::Cpu).expect("linux tells");
        let held = vec![1u8; 64 << 20];
        let after = memory_in_use(Device::Cpu).expect("linux tells");
        // Other tests may give memory back in the meantime, though not as much.
        assert!(after > before + (32 << 20), "{before} {after} {}", held.len());
    }
}
