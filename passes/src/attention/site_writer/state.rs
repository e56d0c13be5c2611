//! The states of a site, as inputs and outputs of the graph.

use super::{SiteState, SiteWriter};
use crate::attention::lower::{Dims, RecurrentState};
use crate::ir::graph::ValueId;
use crate::ir::shape::Dim;
use dijiang_format::dtype::DType;
use dijiang_format::names::StatePart;

impl SiteWriter<'_, '_, '_> {
    pub(super) fn past_state(&mut self, dims: Dims) -> RecurrentState {
        let (heads, features, width) = (self.site.kv_heads, dims.features as u64, dims.value_dim as u64);
        RecurrentState {
            s: self.past(StatePart::Sums, DType::F32, &[heads, features, width]),
            z: dims.divides.then(|| self.past(StatePart::Normalizer, DType::F32, &[heads, features])),
        }
    }

    pub(super) fn past(&mut self, part: StatePart, dtype: DType, rest: &[u64]) -> ValueId {
        self.past_named(&part.past(self.site.layer), dtype, rest)
    }

    pub(super) fn past_named(&mut self, name: &str, dtype: DType, rest: &[u64]) -> ValueId {
        let batch = self.p.dim(self.site.q, 0);
        let shape: Vec<Dim> = std::iter::once(batch).chain(rest.iter().copied().map(Dim::Known)).collect();
        self.p.input(name, dtype, shape)
    }

    pub(in crate::attention) fn drop_cache(&mut self) {
        if let Some(cache) = &self.site.cache {
            self.p.drop_output(&cache.present_key);
            self.p.drop_output(&cache.present_value);
        }
    }

    pub(in crate::attention) fn output_state(&mut self, state: SiteState) {
        let SiteState { recurrent, ring } = state;
        if let Some((local, ring)) = ring.filter(|_| self.options.form.splits_rings()) {
            self.output_parts(ring, local);
            return self.output_sums(recurrent);
        }
        // onnxruntime-genai wants states of both names in every layer, of three axes and of four.
        let second = match (ring, recurrent.and_then(|state| state.z)) {
            (Some((_, ring)), _) => self.packed(ring),
            (None, Some(z)) => z,
            (None, None) => self.past(StatePart::Normalizer, DType::F32, &[1, 1]),
        };
        match recurrent {
            Some(_) => self.output_sums(recurrent),
            None => {
                let nothing = self.past(StatePart::Sums, DType::F32, &[1, 1, 1]);
                self.p.output(&StatePart::Sums.present(self.site.layer), nothing);
            }
        }
        self.p.output(&StatePart::Normalizer.present(self.site.layer), second);
    }

    fn output_sums(&mut self, recurrent: Option<RecurrentState>) {
        if let Some(state) = recurrent {
            self.p.output(&StatePart::Sums.present(self.site.layer), state.s);
        }
    }
}
