//! Models of the Hugging Face hub by name: `owner/model`, of a revision where one is given. They come from the cache that
//! the hub's own tools keep, or are downloaded into it.

mod cache;
mod error;
mod files;
mod name;

pub use error::HubError;
pub use name::{HubModel, of_snapshot};

use crate::bundle::room::{self, FreeSpace};
use crate::report::message::shown;
use crate::report::progress::{Progress, Say};
use cache::{Blob, Cache};
use dijiang_format::words::counted;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Repo, RepoType};
use std::path::PathBuf;
use std::time::Duration;

/// How often a broken download is taken up again.
const RETRIES: u32 = 3;
/// How long it waits before the first of them.
const PAUSE: Duration = Duration::from_millis(300);
/// What a server answers where it is asked for bytes that a file does not have.
const NO_SUCH_BYTE: u16 = 416;

/// Where models are looked for.
#[derive(Debug)]
pub struct Hub {
    cache: Cache,
    endpoint: String,
    token: Option<String>,
    is_offline: bool,
    free_space: FreeSpace,
}

impl Hub {
    /// As the variables say that `huggingface_hub` reads: HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and
    /// HF_HUB_OFFLINE. `is_offline` allows no download, whatever they say.
    pub fn of_environment(is_offline: bool) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let says_offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on"));
        let cache = Cache::of_environment(variable);
        Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: variable("HF_TOKEN").or_else(|| cache.token()),
            cache,
            is_offline: is_offline || says_offline,
            free_space: room::free_space,
        }
    }

    /// The path of a model's files: its folder in the cache, or its GGUF file there. What is missing is downloaded.
    pub fn locate(&self, model: &HubModel, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
        // Another tool may have left a model without its tokenizer there, which can be had unless nothing may be asked.
        if let Some((commit, path)) = self.cache.find(model, !self.is_offline) {
            progress.say(Say::Note, &format!("{model} is in the cache, as of commit {commit}"));
            return Ok(path);
        }
        if self.is_offline {
            return Err(HubError::Offline { model: model.clone(), cache: self.cache.dir().to_owned() });
        }
        let found = self.download(model, progress);
        progress.done();
        found
    }

    /// The same where the cache has it, without a question to the network.
    pub fn find(&self, model: &HubModel) -> Option<PathBuf> {
        Some(self.cache.find(model, !self.is_offline)?.1)
    }

    fn download(&self, model: &HubModel, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
        progress.stage(&format!("asking {} for {model}", self.endpoint));
        let api = self.api().map_err(|error| self.fault(model, error))?;
        let info =
            api.repo(repo(model, model.revision())).info().map_err(|error| self.fault(model, error))?;
        self.check_names(model, &[&info.sha])?;
        let siblings: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        // All of one commit, whatever is uploaded meanwhile.
        let download = Download {
            hub: self,
            model,
            api: api.clone(),
            repo: api.repo(repo(model, &info.sha)),
            snapshot: self.cache.snapshot(model, &info.sha),
        };
        download.all(&siblings, progress)?;
        self.cache.refer(model, &info.sha)?;
        Ok(model.path_in(&download.snapshot))
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(self.cache.of_hub())
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .with_user_agent("dijiang", env!("CARGO_PKG_VERSION"))
            .build()
    }

    /// What a server calls commits and files goes into paths.
    fn check_names(&self, model: &HubModel, names: &[&str]) -> Result<(), HubError> {
        let is_plain = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        };
        match names.iter().find(|name| !is_plain(name)) {
            None => Ok(()),
            Some(name) => Err(HubError::Name {
                model: model.clone(),
                endpoint: self.endpoint.clone(),
                name: shown(name),
            }),
        }
    }

    fn fault(&self, model: &HubModel, error: ApiError) -> HubError {
        HubError::of_call(model, &self.endpoint, error)
    }
}

fn repo(model: &HubModel, revision: &str) -> Repo {
    Repo::with_revision(model.id().to_owned(), RepoType::Model, revision.to_owned())
}

/// The files of one commit of a model, on their way into the cache.
struct Download<'a> {
    hub: &'a Hub,
    model: &'a HubModel,
    api: Api,
    repo: ApiRepo,
    snapshot: PathBuf,
}

impl Download<'_> {
    /// The texts come first: where the weights are all there, the model is.
    fn all(&self, siblings: &[String], progress: &mut dyn Progress) -> Result<(), HubError> {
        let wanted = files::wanted(self.model, siblings)?;
        for text in &wanted.texts {
            self.one(text, progress)?;
        }
        let weights = match &wanted.index {
            None => wanted.weights,
            Some(index) => files::named_by(&self.one(index, progress)?)?,
        };
        let missing: Vec<&String> =
            weights.iter().filter(|name| !self.snapshot.join(name).exists()).collect();
        let bytes = self.sizes(&missing)?;
        progress.say(
            Say::Note,
            &format!(
                "downloading {} of weights of {}, {:.1} MB, into {}",
                counted(missing.len(), "file"),
                self.model,
                bytes as f64 / 1e6,
                self.hub.cache.dir().display()
            ),
        );
        self.check_room(bytes)?;
        missing.into_iter().try_for_each(|name| self.one(name, progress).map(drop))
    }

    /// The bytes of some files.
    fn sizes(&self, names: &[&String]) -> Result<u64, HubError> {
        names.iter().map(|name| self.size(name)).sum()
    }

    fn size(&self, name: &str) -> Result<u64, HubError> {
        Ok(self.described(name)?.map_or(0, |file| file.bytes))
    }

    /// What the server says of a file, unless it is empty. A part of it that is as long is removed: a server has nothing
    /// to send after its end.
    fn described(&self, name: &str) -> Result<Option<Blob>, HubError> {
        let metadata = match self.api.metadata(&self.repo.url(name)) {
            Ok(metadata) if metadata.size() == 0 => return Ok(None),
            Ok(metadata) => metadata,
            // The client asks for the first byte, which an empty file does not have.
            Err(error) if error::status(&error) == Some(NO_SUCH_BYTE) => return Ok(None),
            Err(error) => return Err(self.hub.fault(self.model, error)),
        };
        self.hub.check_names(self.model, &[metadata.etag(), metadata.commit_hash()])?;
        let file = Blob { etag: metadata.etag().to_owned(), bytes: metadata.size() as u64 };
        self.hub.cache.drop_part(self.model, &file)?;
        Ok(Some(file))
    }

    fn check_room(&self, bytes: u64) -> Result<(), HubError> {
        let dir = self.hub.cache.dir();
        // A file system that tells nothing will when it is written to.
        let free = (self.hub.free_space)(dir).unwrap_or(u64::MAX);
        if bytes <= free {
            return Ok(());
        }
        Err(HubError::NoRoom { model: self.model.clone(), cache: dir.to_owned(), bytes, free })
    }

    /// Downloads a file, or takes it from the cache.
    fn one(&self, name: &str, progress: &mut dyn Progress) -> Result<PathBuf, HubError> {
        let path = self.snapshot.join(name);
        if path.exists() {
            return Ok(path);
        }
        let Some(file) = self.described(name)? else {
            cache::write_empty(&path)?;
            return Ok(path);
        };
        if !self.hub.cache.link(self.model, &file, &path)? {
            self.fetch(name, progress)?;
        }
        cache::check_digest(&path)?;
        Ok(path)
    }

    fn fetch(&self, name: &str, progress: &mut dyn Progress) -> Result<(), HubError> {
        // The client's own way of trying again writes behind what is there from the beginning.
        let mut tries = 0;
        loop {
            match self.repo.download_with_progress(name, Shown { progress }) {
                Ok(_) => return Ok(()),
                Err(error) if tries < RETRIES && is_passing(&error) => {
                    tries += 1;
                    std::thread::sleep(PAUSE * tries);
                }
                Err(error) => return Err(self.hub.fault(self.model, error)),
            }
        }
    }
}

/// Whether another try may go better.
fn is_passing(error: &ApiError) -> bool {
    match error {
        ApiError::IoError(_) => true,
        ApiError::RequestError(_) => error::status(error).is_none_or(|status| status >= 500),
        _ => false,
    }
}

/// Shows a download.
struct Shown<'a> {
    progress: &'a mut dyn Progress,
}

impl hf_hub::api::Progress for Shown<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        self.progress.bytes(&format!("downloading {}", shown(filename)), size as u64);
    }

    fn update(&mut self, size: usize) {
        self.progress.advance(size as u64);
    }

    fn finish(&mut self) {}
}
