//! Whether memory can hold a batch at all, asked before anything of its size is made.

use super::TrainError;
use crate::bundle::room;
use dijiang_format::manifest::{Manifest, Site};
use dijiang_passes::training::specialize::Size;
use dijiang_runtime::Device;

/// Bytes of a token on the host: its id and its label, where they are put together and where they are read.
const HOST: u64 = 32;
/// Bytes of a number in an activation.
const NUMBER: u64 = 4;

/// Refuses a batch that takes more than is free, whatever else a run takes.
pub(super) fn check(manifest: &Manifest, size: Size, device: Device) -> Result<(), TrainError> {
    // Where the system does not tell, what no address reaches is refused.
    let free = room::free_memory().unwrap_or(i64::MAX as u64);
    let needed = least(&manifest.sites, size, device);
    if needed <= free {
        return Ok(());
    }
    Err(TrainError::Memory { size, needed, free })
}

/// The least that a batch takes: on the host its tokens; on the CPU also the queries, keys and values of one attention,
/// and the scores of one that is softmax, over a window too.
fn least(sites: &[Site], size: Size, device: Device) -> u64 {
    let times =
        |factors: &[u64]| factors.iter().fold(1_u64, |product, factor| product.saturating_mul(*factor));
    let tokens = times(&[size.batch, size.sequence]);
    let one = |site: &Site| {
        let heads = site.heads.saturating_add(site.kv_heads.saturating_mul(2)) as u64;
        let values = times(&[tokens, heads, site.head_dim as u64, NUMBER]);
        let scores =
            if site.is_linear() { 0 } else { times(&[tokens, size.sequence, site.heads as u64, NUMBER]) };
        values.saturating_add(scores)
    };
    let computed = match device {
        Device::Cpu => sites.iter().map(one).max().unwrap_or(0),
        Device::Cuda(_) => 0,
    };
    times(&[tokens, HOST]).saturating_add(computed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(lowered: bool) -> Site {
        Site { name: "h".to_owned(), layer: 0, heads: 4, kv_heads: 2, head_dim: 8, lowered, window: None }
    }

    #[test]
    fn the_least_is_that_of_one_attention() {
        let size = Size { batch: 3, sequence: 5 };
        let values = 15 * 8 * 8 * 4;
        assert_eq!(least(&[site(true), site(true)], size, Device::Cpu), 15 * 32 + values);
        assert_eq!(least(&[site(true), site(false)], size, Device::Cpu), 15 * 32 + values + 15 * 5 * 4 * 4);
        assert_eq!(least(&[site(true)], size, Device::Cuda(0)), 15 * 32);
        assert_eq!(least(&[site(false)], Size { batch: u64::MAX, sequence: 2 }, Device::Cpu), u64::MAX);
    }
}
