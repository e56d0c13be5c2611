//! Undoing a broadcast: which axes were repeated, and so are summed.

use crate::ir::shape::Dim;

/// Axes of the broadcast shape, counted from its front.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    /// Axes in front that the value does not have.
    pub(super) lead: usize,
    /// Axes in which the value is 1 and the broadcast is not.
    pub(super) inner: Vec<usize>,
}

impl Repeated {
    pub(super) fn axes(&self) -> Vec<usize> {
        (0..self.lead).chain(self.inner.iter().copied()).collect()
    }
}

/// `None` where it cannot be told.
pub(super) fn repeated(to: &[Dim], from: &[Dim]) -> Option<Repeated> {
    let lead = to.len().checked_sub(from.len())?;
    let mut inner = Vec::new();
    for (i, (to, from)) in to[lead..].iter().zip(from).enumerate() {
        match (to, from) {
            (Dim::Known(1), Dim::Known(1)) => {}
            (_, Dim::Known(1)) => inner.push(lead + i),
            // A known dim other than 1 is never broadcast.
            (_, Dim::Known(_)) => {}
            (to, from) if to == from && *to != Dim::Unknown => {}
            _ => return None,
        }
    }
    Some(Repeated { lead, inner })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_axes_are_those_that_grew() {
        let (batch, time) = (Dim::sym("batch"), Dim::sym("time"));
        let to = [batch.clone(), time.clone(), 4.into()];
        let case = |from: &[Dim]| repeated(&to, from).map(|r| r.axes());
        assert_eq!(case(&to), Some(vec![]));
        assert_eq!(case(&[time.clone(), 4.into()]), Some(vec![0]));
        assert_eq!(case(&[1.into(), 1.into(), 4.into()]), Some(vec![0, 1]));
        assert_eq!(case(&[]), Some(vec![0, 1, 2]));
        // One of the two may be 1.
        assert_eq!(case(&[batch, 4.into()]), None);
        assert_eq!(repeated(&[4.into()], &[time]), None);
        assert_eq!(repeated(&[Dim::Unknown], &[Dim::Unknown]), None);
    }
}
