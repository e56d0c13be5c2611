//! Blocks of quantised numbers, as ggml lays them out: one scale, or several, and integers that it multiplies. Every product
//! and sum is of f32, in the order in which ggml takes them.

use half::f16;

fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Numbers of 4 bits, of which a byte holds one of the first half and one of the second.
fn nibbles(packed: &[u8], take: &mut dyn FnMut(usize, u8)) {
    for (at, byte) in packed.iter().enumerate() {
        take(at, byte & 15);
        take(at + packed.len(), byte >> 4);
    }
}

pub(super) fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[2..18], &mut |at, number| out[at] = scale * (f32::from(number) - 8.0));
}

pub(super) fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    nibbles(&block[4..20], &mut |at, number| out[at] = scale * f32::from(number) + least);
}

/// The fifth bits of 32 numbers.
fn fifth(block: &[u8], from: usize, at: usize) -> u8 {
    (block[from + at / 8] >> (at % 8) & 1) << 4
}

pub(super) fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    nibbles(&block[6..22], &mut |at, low| {
        out[at] = scale * (f32::from(low | fifth(block, 2, at)) - 16.0);
    });
}

pub(super) fn q5_1(block: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(block, 0), half(block, 2));
    nibbles(&block[8..24], &mut |at, low| {
        out[at] = scale * f32::from(low | fifth(block, 4, at)) + least;
    });
}

pub(super) fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half(block, 0);
    for (out, byte) in out.iter_mut().zip(&block[2..34]) {
        *out = scale * f32::from(byte.cast_signed());
    }
}

/// 16 groups of 16, each with a scale and a least number of 4 bits; numbers of 2 bits.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, packed) = (&block[..16], &block[16..80]);
    let (of_scales, of_least) = (half(block, 80), half(block, 82));
    for (at, out) in out.iter_mut().enumerate() {
        let group = scales[at / 16];
        let (scale, least) = (of_scales * f32::from(group & 15), of_least * f32::from(group >> 4));
        *out = scale * f32::from(pair(packed, at)) - least;
    }
}

/// Two bits of a number: 128 numbers lie in 32 bytes, each byte with one of every quarter.
fn pair(packed: &[u8], at: usize) -> u8 {
    packed[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2) & 3
}

/// 16 groups of 16, each with a scale of 6 bits; numbers of 3 bits, the third of them inverted.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, packed, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let all = half(block, 108);
    for (at, out) in out.iter_mut().enumerate() {
        let group = at / 16;
        let low = scales[group % 8] >> (group / 8 * 4) & 15;
        let top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        let scale = all * (f32::from(low | top << 4) - 32.0);
        let third = high[at % 32] >> (at / 32) & 1;
        let number = f32::from(pair(packed, at)) - if third == 0 { 4.0 } else { 0.0 };
        *out = scale * number;
    }
}

/// The scale and the least number of a group, 6 bits each: eight of both lie in 12 bytes.
fn six_bits(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        return (packed[group] & 63, packed[group + 4] & 63);
    }
    let [low, top, top_of_least] = [packed[group + 4], packed[group - 4], packed[group]];
    (low & 15 | top >> 6 << 4, low >> 4 | top_of_least >> 6 << 4)
}

/// 8 groups of 32, each with a scale and a least number; numbers of 4 bits, and a fifth where there is one.
fn groups_of_32(block: &[u8], packed: &[u8], high: Option<&[u8]>, out: &mut [f32]) {
    let (of_scales, of_least, six) = (half(block, 0), half(block, 2), &block[4..16]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, least) = six_bits(six, group);
        let (scale, least) = (of_scales * f32::from(scale), of_least * f32::from(least));
        for (at, out) in out.iter_mut().enumerate() {
            let low = packed[group / 2 * 32 + at] >> (group % 2 * 4) & 15;
            let top = high.map_or(0, |high| (high[at] >> group & 1) << 4);
            *out = scale * f32::from(low | top) - least;
        }
    }
}

pub(super) fn q4_k(block: &[u8], out: &mut [f32]) {
    groups_of_32(block, &block[16..144], None, out);
}

pub(super) fn q5_k(block: &[u8], out: &mut [f32]) {
    groups_of_32(block, &block[48..176], Some(&block[16..48]), out);
}

/// 16 groups of 16, each with a scale of 8 bits; numbers of 6 bits.
pub(super) fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let all = half(block, 208);
    for (at, out) in out.iter_mut().enumerate() {
        let (part, within) = (at / 128, at % 128);
        let four = low[part * 64 + within % 64] >> (within / 64 * 4) & 15;
        let two = high[part * 32 + within % 32] >> (within / 32 * 2) & 3;
        let number = f32::from(four | two << 4) - 32.0;
        *out = all * f32::from(scales[at / 16].cast_signed()) * number;
    }
}
