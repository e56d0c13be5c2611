use dijiang::onnx::{export::*, import::import};
fn main() {
    for p in std::env::args().skip(1) {
        let short = p.replace("/tmp/exports/", "");
        match import(std::path::Path::new(&p)) {
            Err(e) => println!("IMPORT {}", e.to_string().replace("/tmp/exports/", "").chars().take(260).collect::<String>()),
            Ok(g) => {
                let v = dijiang_passes::ir::verify::verify(&g);
                let opaque: std::collections::BTreeSet<String> = g.nodes().filter(|(_, n)| n.op.spec().is_none()).map(|(_, n)| n.op.qualified_name()).collect();
                let out = p.replace(".onnx", ".ours.onnx");
                let e = export(&g, &ExportOptions { opset: std::env::var("OPSET").ok().and_then(|s| s.parse().ok()).unwrap_or(21), weights: None });
                let r = e.as_ref().map(|b| b.len()).map_err(|e| e.to_string());
                if let Ok(b) = e { std::fs::write(&out, b).unwrap(); }
                println!("OK {short} nodes {} violations {:?} export {r:?} opaque {opaque:?}", g.nodes().count(), v.first().map(|v| v.to_string()));
            }
        }
    }
}
