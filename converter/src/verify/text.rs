//! A short text that a conversion is judged by where the model has a tokenizer: random ids are nothing that it has ever read.

use dijiang_format::files;
use dijiang_format::manifest::Manifest;
use dijiang_runtime::Tokenizer;
use std::path::Path;

/// Plain English about nothing in particular.
const TEXT: &str = "\
The ferry left the harbour a little after six, while the lamps along the quay were still burning. There were few \
passengers that morning: a teacher with a box of books, two sisters on their way to the market, and an old man who had \
made the crossing every week for thirty years. He told the sisters that the weather would turn before noon. They looked \
at the clear sky and laughed, but the teacher, who had lived on the island as a child, put her books under the bench and \
covered them with her coat.

By ten o'clock the wind had shifted to the north. The captain reduced the speed and asked everyone to come inside. From \
the small window one could see the waves rise and break, and behind them the grey line of the coast, which seemed to \
come no closer. Nobody spoke much. The younger sister counted the seconds between two waves, as her father had taught \
her, and found that they were growing longer. That, she said, meant that the worst was over. The old man nodded. When the \
boat reached the island at last, the rain had begun, and the whole village stood on the pier to see them arrive. The \
teacher opened her box first. Every page was dry.
";

/// Tokens of it, at most.
const MOST: usize = 256;
/// Fewer say nothing.
const LEAST: usize = 16;

/// Its first tokens, as the bundle's tokenizer has them; none where there is no tokenizer that fits the model.
pub(super) fn tokens(bundle: &Path, manifest: &Manifest) -> Option<Vec<i64>> {
    let path = bundle.join(files::TOKENIZER);
    if !path.is_file() {
        return None;
    }
    let mut ids = Tokenizer::load(&path).ok()?.encode(TEXT).ok()?;
    let most = manifest.model.positions.map_or(MOST, |positions| MOST.min(positions as usize));
    ids.truncate(most);
    let is_known = |id: &i64| u64::try_from(*id).is_ok_and(|id| id < manifest.model.vocab);
    (ids.len() >= LEAST && ids.iter().all(is_known)).then_some(ids)
}
