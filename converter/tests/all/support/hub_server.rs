//! A server on this machine that speaks the protocol of the Hugging Face hub, of one model: what it has, its files in parts,
//! and large ones by way of another address.

use dijiang_format::manifest::SourceFile;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What is served, and how badly.
#[derive(Debug)]
pub(crate) struct Served {
    /// What it says that its commit is.
    pub(crate) commit: &'static str,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Asked for, where there is one.
    pub(crate) token: Option<&'static str>,
    /// How many downloads of large files break off, each after so many bytes.
    pub(crate) breaks: AtomicUsize,
    pub(crate) break_after: usize,
    /// Sends another last byte of large files than they have.
    pub(crate) damages: AtomicBool,
}

impl Default for Served {
    fn default() -> Self {
        Self {
            commit: COMMIT,
            files: BTreeMap::new(),
            token: None,
            breaks: AtomicUsize::new(0),
            break_after: 0,
            damages: AtomicBool::new(false),
        }
    }
}

/// Ends when it is dropped.
pub(crate) struct HubServer {
    address: SocketAddr,
    served: Arc<Served>,
    log: Arc<Mutex<Vec<String>>>,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HubServer {
    /// Of the model `org/tiny`.
    pub(crate) fn start(served: Served) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let served = Arc::new(served);
        let (log, stops) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (served, log, stops) = (served.clone(), log.clone(), stops.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    if stops.load(Ordering::Relaxed) {
                        return;
                    }
                    // A client that hangs up is none of the server's business.
                    let _ = stream.and_then(|stream| answer(&stream, &served, address, &log));
                }
            })
        };
        Self { address, served, log, stops, thread: Some(thread) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// What was asked since the last time: a path and, for a part, where it begins.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().expect("nothing panicked"))
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        // What it waits for.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server does not panic");
        }
    }
}

struct Request {
    path: String,
    /// The first byte and the last that are asked for.
    range: Option<(usize, Option<usize>)>,
    token: Option<String>,
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, range: None, token: None };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "range" => {
                let (from, to) = value.trim_start_matches("bytes=").split_once('-').expect("a range");
                request.range = Some((from.parse().expect("a number"), to.parse().ok()));
            }
            "authorization" => request.token = value.strip_prefix("Bearer ").map(str::to_owned),
            _ => (),
        }
    }
    Ok(request)
}

fn answer(
    stream: &TcpStream,
    served: &Served,
    address: SocketAddr,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let request = read(stream)?;
    let begins = request.range.filter(|(_, to)| to.is_none()).map(|(from, _)| format!(" from {from}"));
    let line = format!("{}{}", request.path, begins.unwrap_or_default());
    log.lock().expect("nothing panicked").push(line);
    if let Some(name) = request.path.strip_prefix("/elsewhere/") {
        return send_large(stream, served, name, &request);
    }
    if served.token.is_some() && request.token.as_deref() != served.token {
        return send(stream, "401 Unauthorized", &[], b"");
    }
    let revisions = ["main", "v1", COMMIT];
    if revisions.iter().any(|name| request.path == format!("/api/models/org/tiny/revision/{name}")) {
        let siblings: Vec<_> =
            served.files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let info = serde_json::json!({"id": "org/tiny", "sha": served.commit, "siblings": siblings});
        return send(stream, "200 OK", &[], info.to_string().as_bytes());
    }
    let name = request.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).unwrap_or_default();
    let Some(bytes) = served.files.get(name) else { return send(stream, "404 Not Found", &[], b"") };
    let commit = format!("X-Repo-Commit: {COMMIT}");
    if !is_large(name) {
        // Not by its SHA-256, as the hub has it of texts.
        return send_part(stream, bytes, &request, &[commit, format!("ETag: \"{}\"", digest_of_text(bytes))]);
    }
    let headers = [
        commit,
        format!("X-Linked-Etag: \"{}\"", sha256(bytes)),
        format!("Location: http://{address}/elsewhere/{name}"),
    ];
    send(stream, "302 Found", &headers, b"")
}

fn is_large(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "safetensors" || e == "gguf")
}

fn sha256(bytes: &[u8]) -> String {
    let home = tempfile::tempdir().expect("a directory");
    let path = home.path().join("bytes");
    std::fs::write(&path, bytes).expect("it is written");
    SourceFile::describe_whole(&path).expect("it is read").sha256.expect("a digest")
}

/// Of 40 digits, as Git has them.
fn digest_of_text(bytes: &[u8]) -> String {
    sha256(bytes)[..40].to_owned()
}

fn send_large(stream: &TcpStream, served: &Served, name: &str, request: &Request) -> std::io::Result<()> {
    let mut bytes = served.files[name].clone();
    if served.damages.load(Ordering::Relaxed) {
        *bytes.last_mut().expect("it has bytes") ^= 1;
    }
    let is_download = request.range.is_some_and(|(_, to)| to.is_none());
    if is_download && served.breaks.load(Ordering::Relaxed) > 0 {
        served.breaks.fetch_sub(1, Ordering::Relaxed);
        let (from, _) = request.range.expect("a part is asked for");
        let head = head(
            "206 Partial Content",
            &[content_range(from, bytes.len() - 1, bytes.len())],
            bytes.len() - from,
        );
        let mut out = stream;
        out.write_all(head.as_bytes())?;
        return out.write_all(&bytes[from..(from + served.break_after).min(bytes.len())]);
    }
    send_part(stream, &bytes, request, &[])
}

fn content_range(from: usize, to: usize, of: usize) -> String {
    format!("Content-Range: bytes {from}-{to}/{of}")
}

fn send_part(stream: &TcpStream, bytes: &[u8], request: &Request, headers: &[String]) -> std::io::Result<()> {
    let Some((from, to)) = request.range else { return send(stream, "200 OK", headers, bytes) };
    if from >= bytes.len() {
        return send(stream, "416 Range Not Satisfiable", &[], b"");
    }
    let to = to.unwrap_or(usize::MAX).min(bytes.len() - 1);
    let mut headers = headers.to_vec();
    headers.push(content_range(from, to, bytes.len()));
    send(stream, "206 Partial Content", &headers, &bytes[from..=to])
}

fn head(status: &str, headers: &[String], length: usize) -> String {
    let own = [format!("Content-Length: {length}"), "Connection: close".to_owned()];
    let lines = [&[format!("HTTP/1.1 {status}")], headers, &own].concat();
    lines.join("\r\n") + "\r\n\r\n"
}

fn send(mut stream: &TcpStream, status: &str, headers: &[String], body: &[u8]) -> std::io::Result<()> {
    stream.write_all(head(status, headers, body.len()).as_bytes())?;
    stream.write_all(body)
}
