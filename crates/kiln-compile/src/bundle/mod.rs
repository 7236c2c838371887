//! From a checkpoint to a bundle: which parts it needs, building those that the cache lacks, putting them together.

mod content;
mod recipes;
mod relay;
mod subject;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use kiln_bundle::fs::{Lock, create_folder, digest, write_atomic};
use kiln_bundle::{
    Bundle, BundleError, ComponentName, Content, Digests, FileEntry, MANIFEST, Manifest, Provenance, Stage,
    Staging, Target,
};
use kiln_graph::Cuts;
use kiln_nets::Sizes;

use subject::Subject;

use crate::cache::{Compiled, EngineCache, Entry};
use crate::checkpoint::{ControlNetCheckpoint, Source};
use crate::targets::{EngineOptions, OnnxModel, TargetOptions, build_engines, build_from_onnx, build_onnx};
use crate::trace::{PROMPTS, Traced};
use crate::{Checkpoint, CompileError, Difference, Progress, Recipe, TraceOptions};

/// What is built of a checkpoint.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// How the networks are traced.
    pub trace: TraceOptions,
    /// What they become.
    pub target: TargetOptions,
    /// Whether digests of the checkpoint's files are taken anew, not remembered.
    pub rehash: bool,
}

impl BuildOptions {
    /// A bundle for the CPU. Where its batch is open, its denoisers compute once for both halves of a guided one what they
    /// compute before they read the prompt.
    pub fn cpu(mut trace: TraceOptions) -> BuildOptions {
        if trace.runtime_ports && trace.sizes == Sizes::Dynamic {
            trace.policy.prompts = PROMPTS.map(str::to_owned).into();
        }
        BuildOptions { trace, target: TargetOptions::Cpu, rehash: false }
    }
}

/// One part of a plan.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where the bundle of the part lies in the bundle: empty but for ControlNets that came with the checkpoint.
    pub folder: String,
    /// What the part is built from.
    pub recipe: Recipe,
    /// Whether the cache has it.
    pub is_cached: bool,
    /// Bytes of weights that it holds.
    pub weight_bytes: u64,
    /// What differs from the likest entry of the cache; empty if there is none.
    pub differences: Vec<Difference>,
}

/// Everything that a bundle needs, before anything is built.
pub struct Plan<'a> {
    name: String,
    target: TargetOptions,
    parts: Vec<Part<'a>>,
    content: Content,
    companions: Vec<(String, Source)>,
    provenance: Provenance,
    nested: Vec<(String, Plan<'a>)>,
}

/// Components over the same weights, which are built together.
struct Part<'a> {
    models: Models<'a>,
    recipe: Recipe,
}

/// Where a part's networks come from.
enum Models<'a> {
    Traced(Vec<Traced<'a>>),
    Onnx(Vec<OnnxModel>),
}

impl Models<'_> {
    fn weight_bytes(&self) -> u64 {
        match self {
            Models::Traced(traced) => {
                let weights = traced.iter().flat_map(Traced::weights);
                weights.map(|w| (&w.name, w.n_bytes())).collect::<BTreeMap<_, _>>().values().sum()
            }
            // Components of a part read the same weights, each nearly all of them.
            Models::Onnx(models) => models.iter().map(|m| m.component.weight_bytes).max().unwrap_or(0),
        }
    }

    /// Weights on which no output depends, of the components whose weights LoRAs name.
    fn unread(&self) -> Vec<(ComponentName, Vec<String>)> {
        match self {
            Models::Traced(traced) => {
                traced.iter().filter(|t| t.stage == Stage::TextEncoder).map(|t| (t.name, t.unread())).collect()
            }
            Models::Onnx(models) => {
                models.iter().map(|model| (model.name, model.component.unread_weights.clone())).collect()
            }
        }
    }
}

impl EngineCache {
    /// What the bundle of a checkpoint needs.
    pub fn plan<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        options: &BuildOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Plan<'a>, CompileError> {
        self.plan_for(&Subject::Pipeline(checkpoint), options, progress)
    }

    /// The bundle of a checkpoint, from the cache or made now.
    ///
    /// Processes that ask for the same part at once build it once.
    pub fn compile(
        &self,
        checkpoint: &Checkpoint,
        options: &BuildOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Compiled, CompileError> {
        let plan = self.plan(checkpoint, options, progress)?;
        self.execute(&plan, progress)
    }

    /// What a ControlNet's bundle needs, like [`EngineCache::plan`].
    pub fn plan_controlnet<'a>(
        &self,
        checkpoint: &'a ControlNetCheckpoint,
        options: &BuildOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Plan<'a>, CompileError> {
        self.plan_for(&Subject::ControlNet(checkpoint), options, progress)
    }

    /// What a bundle of engines needs that is built from one of ONNX, which another machine may have traced.
    pub fn plan_from_onnx(
        &self,
        source: &Bundle,
        options: &EngineOptions,
    ) -> Result<Plan<'static>, CompileError> {
        relay::plan(source, options)
    }

    fn plan_for<'a>(
        &self,
        subject: &Subject<'a>,
        options: &BuildOptions,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Plan<'a>, CompileError> {
        if options.trace.policy.cuts != Cuts::None && options.target.target() == Target::Onnx {
            return Err(CompileError::checkpoint(subject.root(), "engines are built from whole models"));
        }
        let mut digests = self.digests()?;
        if options.rehash {
            digests.forget();
        }
        let plan = Plan::new(subject, options, &mut digests, progress);
        digests.save();
        plan
    }

    /// Builds the parts of several bundles that the cache lacks, up to `jobs` at once.
    pub fn build(
        &self,
        plans: &[Plan<'_>],
        jobs: usize,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), CompileError> {
        let mut missing = Vec::new();
        for plan in plans {
            if self.cached(plan)?.is_none() {
                missing.push(plan);
            }
        }
        if !missing.is_empty() {
            self.prepare()?;
        }
        let parts: Vec<(&Part<'_>, &TargetOptions)> = missing
            .into_iter()
            .flat_map(|plan| plan.all_parts().into_iter().map(|part| (part, &plan.target)))
            .collect();
        let progress = Mutex::new(progress);
        let tell = |p: Progress| progress.lock().unwrap_or_else(PoisonError::into_inner)(p);
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            while let Some((part, target)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(e) = part.build(self, target, &mut |p| tell(p)) {
                    next.store(parts.len(), Ordering::Relaxed);
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..jobs.clamp(1, parts.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// The bundle of a plan, if the cache has it, which counts as use.
    pub fn bundle_of(&self, plan: &Plan<'_>) -> Result<Option<Bundle>, CompileError> {
        let found = self.cached(plan)?;
        if found.is_some() {
            Entry::touch(&plan.place(self));
        }
        Ok(found)
    }

    /// Builds what the cache lacks and puts the bundle together.
    pub fn execute(
        &self,
        plan: &Plan<'_>,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Compiled, CompileError> {
        let target = plan.place(self);
        let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(bundle) = self.bundle_of(plan)? {
            return Ok(Compiled { bundle, was_cached: true });
        }
        self.prepare()?;
        let _lock = Lock::acquire(&self.root().join(format!(".{name}.lock")))?;
        if let Some(bundle) = self.cached(plan)? {
            return Ok(Compiled { bundle, was_cached: true });
        }
        let bundle = match self.assemble(plan, &target, progress) {
            Err(CompileError::Bundle(BundleError::Size { .. } | BundleError::Digest { .. })) => {
                plan.all_parts().into_iter().try_for_each(|part| self.recheck(&part.recipe))?;
                self.assemble(plan, &target, progress)
            }
            result => result,
        };
        Ok(Compiled { bundle: bundle?, was_cached: false })
    }

    fn assemble(
        &self,
        plan: &Plan<'_>,
        target: &Path,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Bundle, CompileError> {
        let key = self.seal_key()?;
        let staging = Staging::new(target)?;
        plan.assemble(self, staging.path(), progress)?;
        key.seal_manifest(staging.path())?;
        Ok(Bundle::open_sealed(staging.publish()?, &key)?)
    }

    /// The bundle of a plan, if it is there, whole and sealed; a damaged one counts as absent and is made anew.
    fn cached(&self, plan: &Plan<'_>) -> Result<Option<Bundle>, CompileError> {
        let target = plan.place(self);
        if !target.exists() {
            return Ok(None);
        }
        let key = self.seal_key()?;
        let is_of_plan = |bundle: &Bundle| bundle.manifest().provenance.key == plan.provenance.key;
        Ok(Bundle::open_sealed(&target, &key).ok().filter(is_of_plan))
    }
}

impl<'a> Plan<'a> {
    fn new(
        subject: &Subject<'a>,
        options: &BuildOptions,
        digests: &mut Digests,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Plan<'a>, CompileError> {
        let traced = subject.trace(&options.trace, progress)?;
        let content = subject.content(options.trace.sizes, &traced);
        let mut nested = Vec::new();
        let trace = TraceOptions { loras: Vec::new(), ..options.trace.clone() };
        let without_loras = BuildOptions { trace, ..options.clone() };
        for (folder, subject) in subject.nested() {
            nested.push((folder, Plan::new(&subject, &without_loras, digests, progress)?));
        }
        let mut groups: BTreeMap<String, Vec<Traced<'a>>> = BTreeMap::new();
        for component in traced {
            groups.entry(component.part().to_owned()).or_default().push(component);
        }
        let parts: Vec<Part<'a>> = groups
            .into_iter()
            .map(|(name, traced)| {
                let recipe = recipes::recipe(&name, &traced, options, digests)?;
                Ok(Part { models: Models::Traced(traced), recipe })
            })
            .collect::<Result<_, CompileError>>()?;
        // Read once: their digests are part of the key.
        let companions = subject.companions()?.into_iter().map(|(name, source)| Ok((name, source.read()?)));
        let companions = companions.collect::<Result<Vec<_>, CompileError>>()?;
        let provenance = recipes::provenance(&content, &parts, &companions, &nested, options)?;
        Ok(Plan {
            name: subject.name(),
            target: options.target.clone(),
            parts,
            content,
            companions,
            provenance,
            nested,
        })
    }

    /// The parts, in the order in which they are built.
    pub fn steps(&self, cache: &EngineCache) -> Result<Vec<Step>, CompileError> {
        let mut steps = Vec::new();
        let is_whole = cache.cached(self)?.is_some();
        for part in &self.parts {
            let is_cached = is_whole || cache.has(&part.recipe)?;
            let before = if is_cached { None } else { cache.nearest(&part.recipe) };
            steps.push(Step {
                folder: String::new(),
                is_cached,
                weight_bytes: part.models.weight_bytes(),
                differences: before.map(|before| part.recipe.differences(&before)).unwrap_or_default(),
                recipe: part.recipe.clone(),
            });
        }
        for (folder, plan) in &self.nested {
            let nested = plan.steps(cache)?.into_iter().map(|step| Step {
                folder: folder.clone(),
                is_cached: is_whole || step.is_cached,
                ..step
            });
            steps.extend(nested);
        }
        Ok(steps)
    }

    /// What the target is.
    pub fn target(&self) -> Target {
        self.target.target()
    }

    /// Its parts and those of the bundles inside.
    fn all_parts(&self) -> Vec<&Part<'a>> {
        let nested = self.nested.iter().flat_map(|(_, plan)| plan.all_parts());
        self.parts.iter().chain(nested).collect()
    }

    /// Where its bundle lies.
    fn place(&self, cache: &EngineCache) -> PathBuf {
        let name = format!("{}-{}-{}", self.name, self.target.target(), &self.provenance.key[..16]);
        cache.root().join(name)
    }

    fn assemble(
        &self,
        cache: &EngineCache,
        folder: &Path,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(), CompileError> {
        let mut manifest = Manifest::new(
            self.name.clone(),
            self.target.target(),
            self.content.clone(),
            self.provenance.clone(),
        );
        manifest.tuning = self.target.tuning();
        let unread: BTreeMap<ComponentName, Vec<String>> =
            self.parts.iter().flat_map(|part| part.models.unread()).collect();
        for part in &self.parts {
            let entry = part.build(cache, &self.target, progress)?;
            for (name, listed) in entry.record.files {
                link(&entry.root.join(&name), &folder.join(&name))?;
                manifest.files.insert(name, listed);
            }
            for (name, mut component) in entry.record.components {
                component.unread_weights = unread.get(&name).cloned().unwrap_or_default();
                manifest.components.insert(name, component);
            }
        }
        let mut files = Vec::new();
        for (name, source) in &self.companions {
            let bytes = source.bytes()?;
            let path = folder.join(name);
            create_folder(path.parent().unwrap_or(folder))?;
            fs::write(&path, bytes).map_err(|e| CompileError::io(&path, &e))?;
            files.push(name.clone());
        }
        for (name, plan) in &self.nested {
            create_folder(&folder.join(name))?;
            plan.assemble(cache, &folder.join(name), progress)?;
            files.push(format!("{name}/{MANIFEST}"));
        }
        progress(Progress::Sealing);
        for name in files {
            let path = folder.join(&name);
            let size = fs::metadata(&path).map_err(|e| CompileError::io(&path, &e))?.len();
            manifest.files.insert(name, FileEntry { size, blake3: digest(&path)? });
        }
        Ok(write_atomic(&folder.join(MANIFEST), manifest.to_yaml().as_bytes())?)
    }
}

impl Part<'_> {
    fn build(
        &self,
        cache: &EngineCache,
        target: &TargetOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Entry, CompileError> {
        cache.find_or_build(&self.recipe, |folder| match (target, &self.models) {
            (TargetOptions::Cpu | TargetOptions::Cuda(_) | TargetOptions::Onnx, Models::Traced(traced)) => {
                build_onnx(traced, folder, progress)
            }
            (TargetOptions::Engines(options), Models::Traced(traced)) => {
                build_engines(traced, options, folder, progress)
            }
            (TargetOptions::Engines(options), Models::Onnx(models)) => {
                build_from_onnx(models, options, folder, progress)
            }
            (TargetOptions::Cpu | TargetOptions::Cuda(_) | TargetOptions::Onnx, Models::Onnx(_)) => {
                Err(CompileError::FromOnnx(target.target()))
            }
        })
    }
}

/// Gives a file a second name; where that is not possible, copies it.
fn link(from: &Path, to: &Path) -> Result<(), CompileError> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).map_err(|e| CompileError::io(to, &e))
}
