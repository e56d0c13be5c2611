//! Ids of nodes and values: newtypes over a non-zero `u32`, handed out once and never reused, so
//! that an id kept in a side table can go stale but can never name something else.

use std::fmt;
use std::num::NonZeroU32;

macro_rules! id {
    ($name:ident, $prefix:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU32);

        impl $name {
            /// The `index`-th id, counted from zero.
            pub(crate) fn from_index(index: u32) -> Self {
                Self(NonZeroU32::MIN.saturating_add(index))
            }

            /// How many ids were handed out before this one.
            pub fn index(self) -> u32 {
                self.0.get() - 1
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.index())
            }
        }
    };
}

id!(NodeId, "n", "Names a node of one graph.");
id!(ValueId, "v", "Names a value (an edge) of one graph.");
