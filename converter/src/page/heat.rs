//! A map as a picture: a pixel for each weight.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Of nothing, and of weights from small to one; of negative ones the second.
const NONE: [u8; 3] = [247, 247, 247];
const POSITIVE: [[u8; 3]; 4] = [NONE, [158, 202, 225], [49, 130, 189], [8, 48, 107]];
const NEGATIVE: [[u8; 3]; 4] = [NONE, [253, 174, 107], [230, 85, 13], [127, 39, 4]];

/// Colours on either side of nothing.
const SHADES: u8 = 127;

/// The picture of `width` weights in a row, as an address that holds all of it.
pub(super) fn picture(weights: &[f64], width: usize) -> Result<String, png::EncodingError> {
    address(&weights.iter().map(|weight| shade(*weight)).collect::<Vec<_>>(), width)
}

/// All shades beside each other, from -1 to 1.
pub(super) fn scale() -> Result<String, png::EncodingError> {
    address(&(1..=u8::MAX).collect::<Vec<_>>(), usize::from(u8::MAX))
}

/// The place of a weight among the colours. Small ones are told apart by their root; what is beyond one is shown as one.
fn shade(weight: f64) -> u8 {
    let root = weight.abs().min(1.0).sqrt() * f64::from(SHADES);
    (f64::from(SHADES + 1) + root.copysign(weight)).round() as u8
}

fn address(pixels: &[u8], width: usize) -> Result<String, png::EncodingError> {
    let height = pixels.len() / width.max(1);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_palette((0..=u8::MAX).flat_map(colour).collect::<Vec<u8>>());
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(bytes)))
}

fn colour(shade: u8) -> [u8; 3] {
    let along = (f64::from(shade) - f64::from(SHADES + 1)) / f64::from(SHADES);
    let stops = if along < 0.0 { NEGATIVE } else { POSITIVE };
    let place = along.abs().min(1.0) * (stops.len() - 1) as f64;
    let from = (place as usize).min(stops.len() - 2);
    let part = place - from as f64;
    std::array::from_fn(|i| {
        let (low, high) = (f64::from(stops[from][i]), f64::from(stops[from + 1][i]));
        (low + (high - low) * part).round() as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_lies_between_the_two_signs() {
        assert_eq!([-1.0, -0.25, 0.0, 0.25, 1.0, 7.0].map(shade), [1, 65, 128, 192, 255, 255]);
        assert_eq!([1, 128, 255].map(colour), [NEGATIVE[3], NONE, POSITIVE[3]]);
    }

    #[test]
    fn a_picture_has_a_pixel_for_each_weight() {
        let address = picture(&[1.0, 0.0, 0.5, 0.5], 2).expect("it is drawn");
        let bytes = STANDARD.decode(address.trim_start_matches("data:image/png;base64,")).expect("base64");
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().expect("a picture");
        let mut pixels = vec![0; 4];
        reader.next_frame(&mut pixels).expect("pixels");
        assert_eq!(pixels, [255, 128, 218, 218]);
    }
}
