//! Checkpoints written on the spot: what opens, what is refused and how that is said, and the text
//! of one layer.

use super::*;
use dijiang_passes::ir::text;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tempfile::TempDir;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>)>;

/// A checkpoint to be written, every weight zero.
struct Draft {
    config: Value,
    tensors: Tensors,
}

/// One Llama layer: 4 heads of dim 2 over 2 heads of keys and values.
fn llama() -> Draft {
    let config = json!({
        "model_type": "llama", "dtype": "float16", "hidden_size": 6, "intermediate_size": 3, "head_dim": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 5,
        "max_position_embeddings": 16, "hidden_act": "silu", "rms_norm_eps": 1e-5, "eos_token_id": [2, 3],
        "tie_word_embeddings": true,
    });
    let layer = "model.layers.0";
    let tensors = [
        ("model.embed_tokens.weight".to_owned(), vec![5, 6]),
        ("model.norm.weight".to_owned(), vec![6]),
        (format!("{layer}.input_layernorm.weight"), vec![6]),
        (format!("{layer}.post_attention_layernorm.weight"), vec![6]),
        (format!("{layer}.self_attn.q_proj.weight"), vec![8, 6]),
        (format!("{layer}.self_attn.k_proj.weight"), vec![4, 6]),
        (format!("{layer}.self_attn.v_proj.weight"), vec![4, 6]),
        (format!("{layer}.self_attn.o_proj.weight"), vec![6, 8]),
        (format!("{layer}.mlp.gate_proj.weight"), vec![3, 6]),
        (format!("{layer}.mlp.up_proj.weight"), vec![3, 6]),
        (format!("{layer}.mlp.down_proj.weight"), vec![6, 3]),
    ];
    Draft { config, tensors: tensors.into_iter().map(|(n, s)| (n, (Dtype::F16, s))).collect() }
}

impl Draft {
    fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.config.as_object_mut().expect("an object").remove(key);
        self
    }

    fn tensor(mut self, name: &str, dtype: Dtype, shape: &[usize]) -> Self {
        self.tensors.insert(name.to_owned(), (dtype, shape.to_vec()));
        self
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        self.write_to(dir.path());
        dir
    }

    fn write_to(&self, dir: &Path) {
        write(&dir.join("config.json"), self.config.to_string().as_bytes());
        write(&dir.join("model.safetensors"), &encode(&self.tensors));
    }

    /// Two shards, the norms in the first one.
    fn write_shards(&self) -> TempDir {
        let dir = self.write();
        let (first, second): (Tensors, Tensors) =
            self.tensors.clone().into_iter().partition(|(name, _)| name.contains("norm"));
        std::fs::remove_file(dir.path().join("model.safetensors")).expect("it was written");
        let mut map = serde_json::Map::new();
        for (shard, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
            write(&dir.path().join(shard), &encode(&tensors));
            map.extend(tensors.into_keys().map(|name| (name, json!(shard))));
        }
        let index = json!({"metadata": {}, "weight_map": map});
        write(&dir.path().join("model.safetensors.index.json"), index.to_string().as_bytes());
        dir
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file can be written");
}

fn encode(tensors: &Tensors) -> Vec<u8> {
    let zeros = vec![0; 4096];
    let views = tensors.iter().map(|(name, (dtype, shape))| {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorView::new(*dtype, shape.clone(), &zeros[..bytes]).expect("bytes fill the shape"))
    });
    safetensors::serialize(views, None).expect("safetensors")
}

/// The graph in f32, or the error with the directory left out of it.
fn try_build(dir: &Path) -> Result<SourceModel, String> {
    let result = open(dir).and_then(|c| c.build(Some(DType::F32)));
    result.map_err(|e| e.to_string().replace(&format!("{}/", dir.display()), ""))
}

#[track_caller]
fn refused(draft: &Draft, expected: &str) {
    let dir = draft.write();
    refused_at(dir.path(), expected);
}

#[track_caller]
fn refused_at(dir: &Path, expected: &str) {
    let message = try_build(dir).expect_err("an error");
    assert_eq!(message.replace(&dir.display().to_string(), "DIR"), expected);
}

#[test]
fn the_graph_of_a_layer() {
    let dir = llama().write();
    let checkpoint = open(dir.path()).expect("a checkpoint");
    assert_eq!(checkpoint.dtype(), DType::F16);
    let model = checkpoint.build(None).expect("a model");
    insta::assert_snapshot!(text::print(&model.graph));
}

#[test]
fn the_model_is_described() {
    let dir = llama().write();
    let checkpoint = open(dir.path()).expect("a checkpoint");
    let expected = ModelMeta {
        family: "llama",
        model_type: "llama".to_owned(),
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        hidden: 6,
        vocab: 5,
        max_positions: Some(16),
        learned_positions: None,
        bos: None,
        eos: vec![2, 3],
        pad: None,
        expected_sites: 1,
    };
    assert_eq!(*checkpoint.meta(), expected);
    assert_eq!(checkpoint.tensors().count(), 11);
}

#[test]
fn weights_are_views_under_their_own_names() {
    let dir = llama().write();
    let checkpoint = open(dir.path()).expect("a checkpoint");
    let model = checkpoint.build(None).expect("a model");
    let weights: Vec<(&str, &Tensor)> = model
        .graph
        .consts()
        .filter(|(id, ..)| model.graph.value(*id).is_weight)
        .map(|(_, name, tensor)| (name, tensor))
        .collect();
    assert_eq!(weights.len(), 11);
    for (name, tensor) in weights {
        let (_, stored) = checkpoint.tensors().find(|(n, _)| *n == name).expect("a tensor of that name");
        let place =
            |tensor: &Tensor| tensor.place().map(|(bytes, at)| (std::sync::Arc::as_ptr(bytes).addr(), at));
        assert_eq!(place(stored), place(tensor), "{name} was copied");
    }
}

#[test]
fn the_element_type_is_found_in_the_weights_where_the_config_is_silent() {
    let dir = llama().without("dtype").write();
    assert_eq!(open(dir.path()).expect("a checkpoint").dtype(), DType::F16);
}

#[test]
fn only_float_types_for_models_are_built() {
    let dir = llama().write();
    let message = open(dir.path()).expect("a checkpoint").build(Some(DType::F64)).expect_err("an error");
    assert!(message.to_string().ends_with("element type `f64` is not supported; supported: f32, f16, bf16"));
}

#[test]
fn names_without_the_prefix_of_the_base_model_are_found() {
    let mut draft = llama();
    let bare = |name: String| name.strip_prefix("model.").expect("a full name").to_owned();
    draft.tensors = draft.tensors.into_iter().map(|(n, t)| (bare(n), t)).collect();
    let model = try_build(draft.write().path()).expect("a model");
    assert!(model.graph.find_value("model.layers.0.mlp.up_proj.weight").is_some());
}

/// What is told of a model that is built.
#[track_caller]
fn told(draft: &Draft) -> Vec<String> {
    let dir = draft.write();
    let model = try_build(dir.path()).expect("a model");
    let place = |line: &String| line.replace(&format!("{}/", dir.path().display()), "");
    model.warnings.iter().map(place).collect()
}

#[test]
fn tensors_that_change_nothing_are_told_by_kind() {
    assert!(told(&llama()).is_empty());
    let layer = "model.layers.0.self_attn";
    let mut draft = llama()
        .tensor(&format!("{layer}.rotary_emb.inv_freq"), Dtype::F32, &[1])
        .tensor("some.scale", Dtype::F8_E4M3, &[4])
        // As a bundle holds it.
        .tensor(&format!("{layer}.dijiang.d"), Dtype::F32, &[4]);
    for i in 0..100 {
        draft = draft.tensor(&format!("extra.{i}.proj_matrix"), Dtype::F32, &[1]);
    }
    assert_eq!(
        told(&draft),
        [
            "model.safetensors: 1 tensor (`model.layers.0.self_attn.rotary_emb.inv_freq`): not read, as they change nothing",
            "model.safetensors: 101 tensors (`extra.0.proj_matrix`, `extra.1.proj_matrix`, `extra.10.proj_matrix` and 98 more): not read, as they lie outside the model",
        ]
    );
}

#[test]
fn tensors_of_another_model_are_refused() {
    let layer = "model.layers.0.self_attn";
    let hint = "(hint: export the model to ONNX with its own code, and convert that)";
    refused(
        &llama().tensor(&format!("{layer}.q_norm.weight"), Dtype::F16, &[2]).tensor(
            &format!("{layer}.proj_matrix"),
            Dtype::F16,
            &[2, 2],
        ),
        &format!(
            "model.safetensors: 2 tensors (`{layer}.proj_matrix`, `{layer}.q_norm.weight`), for which llama has no place: without them it would be another model {hint}"
        ),
    );
    // The causal mask of GPT-NeoX is called like this, and has another rank.
    for name in
        ["model.layers.1.mlp.up_proj.weight", "model.W_G", "lm_head.bias", "model.layers.0.attention.bias"]
    {
        refused(
            &llama().tensor(name, Dtype::F16, &[6]),
            &format!(
                "model.safetensors: 1 tensor (`{name}`), for which llama has no place: without it it would be another model {hint}"
            ),
        );
    }
}

/// transformers takes a tied table from either name.
#[test]
fn a_tied_table_may_be_stored_under_the_name_of_the_projection() {
    let mut draft = llama();
    let table = draft.tensors.remove("model.embed_tokens.weight").expect("a table");
    draft.tensors.insert("lm_head.weight".to_owned(), table);
    assert_eq!(described(&draft), described(&llama()));
    assert!(told(&draft).is_empty());
    refused(
        &draft.with("tie_word_embeddings", json!(false)),
        "DIR: tensor `model.embed_tokens.weight` is missing; llama needs it with shape [5, 6]",
    );
}

#[test]
fn in_the_files_of_a_base_model_every_tensor_is_inside() {
    let mut draft = llama();
    let bare = |name: String| name.strip_prefix("model.").expect("a full name").to_owned();
    draft.tensors = draft.tensors.into_iter().map(|(n, t)| (bare(n), t)).collect();
    let message = try_build(draft.tensor("group_norm.weight", Dtype::F16, &[6]).write().path());
    let message = message.expect_err("it is refused");
    assert!(message.contains("1 tensor (`group_norm.weight`), for which llama has no place"), "{message}");
}

#[test]
fn a_tied_projection_may_be_stored_again_as_it_is() {
    let same = llama().tensor("lm_head.weight", Dtype::F16, &[5, 6]);
    assert_eq!(
        told(&same),
        ["model.safetensors: 1 tensor (`lm_head.weight`): not read, as they change nothing"]
    );
    let dir = same.write();
    let path = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("it was written");
    let header = u64::from_le_bytes(*bytes.first_chunk().expect("a length")) as usize;
    // The first tensor in the file is `lm_head.weight`.
    bytes[8 + header] = 1;
    write(&path, &bytes);
    let expected = "model.safetensors: tensor `lm_head.weight` is not `model.embed_tokens.weight`, although `tie_word_embeddings` says so (hint: set it to false in config.json)";
    refused_at(dir.path(), expected);
    refused(&llama().tensor("lm_head.weight", Dtype::F32, &[5, 6]), expected);
}

#[test]
fn config_keys_that_nobody_reads_are_refused_or_told() {
    assert!(
        told(&llama().with("architectures", json!(["LlamaForCausalLM"])).with("dropout", json!(0.1)))
            .is_empty()
    );
    assert_eq!(
        told(
            &llama()
                .with("auto_map", json!({}))
                .with("rotary_emb_base", json!(5000))
                .with("unset", json!(null))
        ),
        [
            "config.json: `auto_map`, `rotary_emb_base`: llama reads no such key, and the model is built without"
        ]
    );
    let harmless = [
        ("qk_norm", json!(false)),
        ("layer_types", json!(["full_attention"])),
        ("logit_scale", json!(1.0)),
        ("is_causal", json!(true)),
        ("partial_rotary_factor", json!(1.0)),
        ("rope_parameters", json!({"partial_rotary_factor": 1.0, "rope_theta": 10000.0})),
        ("quantization_config", json!({})),
    ];
    for (key, value) in harmless {
        assert!(told(&llama().with(key, value)).is_empty(), "{key}");
    }
    let refusals = [
        (
            "sliding_window",
            json!(4096),
            "sliding_window `4096` is not supported; supported: null (attention to all positions)",
        ),
        ("qk_norm", json!(true), "qk_norm `true` is not supported; supported: false"),
        (
            "is_causal",
            json!(false),
            "is_causal `false` is not supported; supported: true (an embedding model attends both ways)",
        ),
        // transformers reads no share of families that rotate whole heads.
        (
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor `0.5` is not supported; supported: 1 (this family rotates whole heads)",
        ),
        (
            "rope_parameters",
            json!({"partial_rotary_factor": 0.5}),
            "rope_parameters.partial_rotary_factor `0.5` is not supported; supported: 1 (this family rotates whole heads)",
        ),
        ("logit_scale", json!(0.0625), "logit_scale `0.0625` is not supported; supported: 1"),
        (
            "quantization_config",
            json!({"bits": 4}),
            "quantization_config.quant_method is `unnamed`: quantised weights are not read (hint: convert the model that was quantised, and put its weights in 4 bits with `--weights int4`; or load it with transformers, `dequantize()` and `save_pretrained` it)",
        ),
    ];
    for (key, value, expected) in refusals {
        refused(&llama().with(key, value), &format!("config.json: {expected}"));
    }
    let off = llama().with("sliding_window", json!(4096)).with("use_sliding_window", json!(false));
    assert!(told(&off).is_empty());
}

#[test]
fn tokens_that_end_a_text_come_from_the_generation_config_first() {
    let meta = |generation: Value| {
        let dir = llama().with("pad_token_id", json!(4)).write();
        write(&dir.path().join("generation_config.json"), generation.to_string().as_bytes());
        let meta = open(dir.path()).map_err(|e| e.to_string())?.meta().clone();
        Ok::<_, String>((meta.eos, meta.bos, meta.pad))
    };
    let found = meta(json!({"eos_token_id": [4, 1], "bos_token_id": 0})).expect("a model");
    assert_eq!(found, (vec![4, 1], Some(0), Some(4)));
    assert_eq!(meta(json!({"eos_token_id": null})).expect("a model"), (vec![2, 3], None, Some(4)));
    let message = meta(json!({"eos_token_id": "</s>"})).expect_err("it is refused");
    assert!(message.ends_with("generation_config.json: key `eos_token_id` is \"</s>\"; expected a token id or a list of token ids"), "{message}");
}

#[test]
fn shards_are_joined() {
    let dir = llama().write_shards();
    let model = try_build(dir.path()).expect("a model");
    let one = try_build(llama().write().path()).expect("a model");
    assert_eq!(text::print(&model.graph), text::print(&one.graph));
    assert_eq!(open(dir.path()).expect("a checkpoint").files().len(), 2);
}

#[cfg(unix)]
#[test]
fn a_cache_folder_leads_to_its_snapshot() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().expect("a directory");
    let cache = root.path().join("models--org--name");
    let snapshot = cache.join("snapshots/0123abc");
    for folder in [&snapshot, &cache.join("blobs"), &cache.join("refs")] {
        std::fs::create_dir_all(folder).expect("a folder");
    }
    llama().write_to(&cache.join("blobs"));
    refused_at(
        &cache,
        "snapshots/0123abc: no config.json here; expected a checkpoint directory as `save_pretrained` writes it",
    );
    symlink("../../blobs/config.json", snapshot.join("config.json")).expect("a link");
    symlink("../../blobs/elsewhere", snapshot.join("model.safetensors")).expect("a link");
    refused_at(
        &cache,
        "snapshots/0123abc: no weights here; expected model.safetensors or model.safetensors.index.json \
         (model.safetensors is a link to a file that is not there; finish the download)",
    );
    std::fs::remove_file(snapshot.join("model.safetensors")).expect("a link");
    symlink("../../blobs/model.safetensors", snapshot.join("model.safetensors")).expect("a link");
    let opened = open(&cache).expect("the only snapshot");
    assert_eq!(opened.dir(), snapshot);
    assert_eq!(open(&snapshot).expect("the snapshot itself").dir(), snapshot);

    std::fs::create_dir(cache.join("snapshots/4567def")).expect("a folder");
    refused_at(
        &cache,
        "DIR: no snapshot to read: there is no refs/main, and snapshots/ holds 2 folders; \
         expected refs/main to name a folder of snapshots/",
    );
    write(&cache.join("refs/main"), b"0123abc\n");
    assert_eq!(open(&cache).expect("the named snapshot").dir(), snapshot);
    write(&cache.join("refs/main"), b"89");
    refused_at(
        &cache,
        "DIR: no snapshot to read: refs/main names `89`, which is not there; \
         expected refs/main to name a folder of snapshots/",
    );
}

#[test]
fn a_directory_without_a_checkpoint_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    refused_at(
        dir.path(),
        "DIR: no config.json here; expected a checkpoint directory as `save_pretrained` writes it",
    );
    write(&dir.path().join("config.json"), b"[1]");
    refused_at(
        dir.path(),
        "config.json: not the JSON that was expected: invalid type: sequence, expected a map at line 1 column 0",
    );
    write(&dir.path().join("config.json"), llama().config.to_string().as_bytes());
    refused_at(
        dir.path(),
        "DIR: no weights here; expected model.safetensors or model.safetensors.index.json",
    );
    write(&dir.path().join("model-q8_0.gguf"), b"");
    refused_at(
        dir.path(),
        "DIR: no weights here; expected model.safetensors or model.safetensors.index.json \
         (found model-q8_0.gguf, which is not read; a GGUF file is named itself and not by its directory)",
    );
    write(&dir.path().join("pytorch_model.bin"), b"");
    refused_at(
        dir.path(),
        "DIR: no weights here; expected model.safetensors or model.safetensors.index.json \
         (found pytorch_model.bin, which is not read; convert it to safetensors: \
         load it with transformers and call `save_pretrained`)",
    );
}

#[test]
fn broken_weight_files_are_refused() {
    let dir = llama().write();
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).expect("it was written");
    let n = whole.len();
    let broken = "the safetensors header is broken";
    let advice = "(hint: the file is damaged or is no safetensors file: fetch or write it again)";

    write(&path, &whole[..n - 10]);
    refused_at(
        dir.path(),
        &format!(
            "model.safetensors: the file has {} bytes, but its header describes {n}; \
             it was cut short or damaged, fetch it again",
            n - 10
        ),
    );
    write(&path, &whole[..100]);
    let header = u64::from_le_bytes(*whole.first_chunk().expect("a length"));
    refused_at(
        dir.path(),
        &format!(
            "model.safetensors: {broken}: its length is given as {header} bytes in a file of 100 {advice}"
        ),
    );
    write(&path, &[]);
    refused_at(dir.path(), &format!("model.safetensors: {broken}: 0 bytes hold no header length {advice}"));
    write(&path, &[0xff; 64]);
    let expected = format!(
        "model.safetensors: {broken}: its length is given as {} bytes in a file of 64 {advice}",
        u64::MAX
    );
    refused_at(dir.path(), &expected);
    write(&path, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n");
    refused_at(
        dir.path(),
        "model.safetensors: it is a pointer of Git LFS, and the weights are not here (hint: `git lfs pull` in its directory fetches them)",
    );
    write(&path, b"\x02\0\0\0\0\0\0\0{]");
    let message = try_build(dir.path()).expect_err("an error");
    assert!(
        message.starts_with(&format!("model.safetensors: {broken}: invalid JSON in header")),
        "{message}"
    );
}

#[test]
fn broken_indexes_are_refused() {
    let dir = llama().write_shards();
    let index = "model.safetensors.index.json";
    let a = dir.path().join("a.safetensors");
    std::fs::remove_file(&a).expect("it was written");
    refused_at(
        dir.path(),
        &format!(
            "{index}: shard `a.safetensors` is missing; the index names it for 3 tensors, fetch it again"
        ),
    );
    std::fs::copy(dir.path().join("b.safetensors"), &a).expect("a copy");
    refused_at(
        dir.path(),
        &format!(
            "{index}: tensor `model.layers.0.input_layernorm.weight` should be in shard `a.safetensors`, \
             but is not there; index and shards do not belong together"
        ),
    );
    write(&dir.path().join(index), b"{}");
    refused_at(
        dir.path(),
        &format!("{index}: not the JSON that was expected: missing field `weight_map` at line 1 column 2"),
    );
}

#[test]
fn tensors_that_do_not_fit_the_config_are_refused() {
    let norm = "model.norm.weight";
    refused(
        &llama().tensor(norm, Dtype::F16, &[7]),
        "model.safetensors: tensor `model.norm.weight` has shape [7]; expected [6] from config.json",
    );
    refused(
        &llama().tensor(norm, Dtype::I8, &[6]),
        "model.safetensors: tensor `model.norm.weight` has element type i8; \
         expected f32, f16, bf16 or f64 (quantised weights are not read)",
    );
    refused(
        &llama().tensor(norm, Dtype::F8_E4M3, &[6]),
        "model.safetensors: tensor `model.norm.weight` has element type F8_E4M3; \
         expected f32, f16, bf16 or f64 (quantised weights are not read)",
    );
    refused(
        &llama().with("tie_word_embeddings", json!(false)),
        "DIR: tensor `lm_head.weight` is missing; llama needs it with shape [5, 6]",
    );
}

#[test]
fn configs_that_cannot_be_built_are_refused() {
    let gelus = "gelu, gelu_fast, gelu_new, gelu_pytorch_tanh, relu, silu, swish";
    let cases = [
        (
            llama().with("model_type", json!("new")),
            "model_type `new` is not supported; supported: cohere, falcon, gemma, gemma2, gemma3_text, glm, gpt2, gpt_neox, gptj, granite, llama, ministral, mistral, olmo2, opt, phi, phi3, qwen2, qwen3, smollm3, stablelm, starcoder2".to_owned(),
        ),
        (
            llama().with("model_type", json!("mamba")),
            "model_type is `mamba`: linear attention, convolutions or state-space layers in place of softmax attention already: its state is constant as it is, and there is nothing to convert".to_owned(),
        ),
        (llama().without("model_type"), "key `model_type` is missing; expected a string".to_owned()),
        (
            llama().without("intermediate_size"),
            "key `intermediate_size` is missing; expected a positive integer below 2^31".to_owned(),
        ),
        (
            llama().with("attention_bias", json!(1)),
            "key `attention_bias` is 1; expected true or false".to_owned(),
        ),
        (
            llama().with("num_key_value_heads", json!(3)),
            "key `num_key_value_heads` is 3; expected a divisor of num_attention_heads = 4".to_owned(),
        ),
        (
            llama().without("head_dim"),
            "key `hidden_size` is 6; expected a multiple of num_attention_heads = 4, as no head_dim is given"
                .to_owned(),
        ),
        (
            llama().with("head_dim", json!(3)),
            "key `head_dim` is such that 3 of 3 features are rotated; \
             expected an even number of them, as they are rotated in pairs"
                .to_owned(),
        ),
        (
            llama().with("hidden_act", json!("mish")),
            format!("hidden_act `mish` is not supported; supported: {gelus}"),
        ),
        (
            llama().with("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
            "rope_scaling.type is `dynamic`: its frequencies follow the length of the text, which is not known at the first token, and a constant state keeps what was rotated then (hint: set rope_type to yarn or linear in config.json, or to default for texts within max_position_embeddings)".to_owned(),
        ),
        (
            llama().with("dtype", json!("int8")),
            "dtype `int8` is not supported; supported: float32, float16, bfloat16".to_owned(),
        ),
        (
            llama().with("quantization_config", json!({"quant_method": "gptq"})),
            "quantization_config.quant_method is `gptq`: quantised weights are not read (hint: convert the model that was quantised, and put its weights in 4 bits with `--weights int4`; or load it with transformers, `dequantize()` and `save_pretrained` it)"
                .to_owned(),
        ),
        (
            mistral().with("layer_types", json!(["chunked_attention"])),
            "layer_types `chunked_attention` is not supported; supported: full_attention, sliding_attention"
                .to_owned(),
        ),
    ];
    for (draft, expected) in cases {
        refused(&draft, &format!("config.json: {expected}"));
    }
}

fn mistral() -> Draft {
    llama().with("model_type", json!("mistral"))
}

/// A model as text, without its name.
fn described(draft: &Draft) -> String {
    let model = try_build(draft.write().path()).expect("a model");
    text::print(&model.graph).lines().skip(1).collect::<Vec<_>>().join("\n")
}

#[test]
fn mistral_without_a_window_is_llama() {
    let model = try_build(mistral().write().path()).expect("a model");
    assert_eq!((model.meta.family, model.meta.model_type.as_str()), ("mistral", "mistral"));
    let full = mistral().with("sliding_window", json!(null));
    assert_eq!(described(&full), described(&llama()));
    let typed = mistral().with("layer_types", json!(["full_attention"]));
    assert_eq!(described(&typed), described(&llama()));
}

/// `use_sliding_window` and `max_window_layers` are keys of other families.
#[test]
fn the_window_of_mistral_is_that_of_transformers() {
    let windowed = described(&mistral().with("sliding_window", json!(4096)));
    assert!(windowed.contains("f32[] = [4096.0]"), "{windowed}");
    assert_eq!(described(&mistral()), windowed);
    assert_eq!(described(&mistral().with("use_sliding_window", json!(false))), windowed);
    assert_eq!(described(&mistral().with("layer_types", json!(["sliding_attention"]))), windowed);
    assert_eq!(described(&mistral().with("model_type", json!("ministral"))), windowed);
    refused(
        &mistral().with("use_sliding_window", json!(true)),
        "config.json: use_sliding_window `true` is not supported; supported: false",
    );
}

/// As a config may say by mistake, or to do harm.
#[test]
fn more_layers_than_memory_holds_numbers_of() {
    for model_type in ["llama", "mistral"] {
        let many =
            llama().with("model_type", json!(model_type)).with("num_hidden_layers", json!(2_000_000_000));
        let message = try_build(many.write().path()).expect_err("an error");
        assert!(message.contains("model.layers.1.input_layernorm.weight` is missing"), "{message}");
    }
}

/// Two layers with a window and one without, between them.
#[test]
fn a_mask_is_there_once_for_all_layers_that_read_it() {
    let mut draft = mistral()
        .with("num_hidden_layers", json!(3))
        .with("sliding_window", json!(2))
        .with("layer_types", json!(["sliding_attention", "full_attention", "sliding_attention"]));
    for (name, tensor) in llama().tensors {
        for layer in ["layers.1", "layers.2"] {
            draft.tensors.insert(name.replace("layers.0", layer), tensor.clone());
        }
    }
    let dir = draft.write();
    let model = try_build(dir.path()).expect("a model");
    let masks = model.graph.nodes().filter(|(_, node)| node.op.is("Where")).count();
    assert_eq!(masks, 2);
    insta::assert_snapshot!(
        text::print(&model.graph)
            .lines()
            .filter(|line| line.contains("mask/"))
            .collect::<Vec<_>>()
            .join("\n")
    );
}

/// As transformers rounds it: √6 is 2.4495, and 2.453 in bf16.
#[test]
fn gemma_rounds_the_root_of_its_width_to_the_type_it_computes_in() {
    let dir =
        llama().with("model_type", json!("gemma")).with("hidden_act", json!("gelu_pytorch_tanh")).write();
    let checkpoint = open(dir.path()).expect("a checkpoint");
    for (dtype, root) in
        [(DType::F32, "[2.4494898]"), (DType::F16, "[2.4492188]"), (DType::BF16, "[2.453125]")]
    {
        let text = text::print(&checkpoint.build(Some(dtype)).expect("a model").graph);
        let constants =
            text.lines().filter(|line| line.contains("model.embed_tokens/") && line.contains(root));
        assert_eq!(constants.count(), 1, "{dtype}: {text}");
    }
}

#[test]
fn falcon_with_a_bias_by_distance_is_refused() {
    let falcon = llama().with("model_type", json!("falcon")).with("hidden_size", json!(8));
    refused(
        &falcon.with("alibi", json!(true)),
        "config.json: alibi is `true`: a bias on the scores by distance, for which there is no linear attention here (hint: Falcon-7B and 40B rotate instead; take one of those)",
    );
}

#[test]
fn layer_norms_without_weights_are_refused() {
    let draft = llama().with("model_type", json!("opt")).with("hidden_size", json!(8));
    refused(
        &draft.with("layer_norm_elementwise_affine", json!(false)),
        "config.json: layer_norm_elementwise_affine `false` is not supported; supported: true",
    );
}
