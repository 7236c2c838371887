//! The public API as a program has it that embeds kiln.

use std::ops::ControlFlow;
use std::thread;

use embedder::{assert_shareable, bundle, pipeline, request};
use kiln_runtime::{
    Backends, CancelToken, Device, Error, ErrorKind, Event, Init, Libraries, LoraFile, MemoryOptions, Offload,
    Output, Pipeline, Pool, Request, Watch,
};

#[test]
fn a_pipeline_moves_between_threads_and_can_be_logged() {
    assert_shareable::<Pipeline>();
    assert_shareable::<Pool>();
    assert_shareable::<CancelToken>();
    assert_shareable::<Event>();
    assert_shareable::<Error>();
    let mut pipeline = pipeline(&Pool::new(), MemoryOptions::new());
    assert!(format!("{pipeline:?}").contains("Pipeline"), "{pipeline:?}");
    let drawn = thread::spawn(move || pipeline.generate(&request())).join().expect("a thread");
    assert_eq!(drawn.expect("a picture").images.len(), 1);
}

#[test]
fn a_request_is_resolved_before_anything_runs() {
    let pipeline = pipeline(&Pool::new(), MemoryOptions::new());
    let request = request().steps(None).guidance_scale(None);
    let job = pipeline.resolve(&request).expect("a job");
    assert_eq!((job.first.steps, job.guidance.scale, job.batch()), (50, 7.5, 1));
    assert_eq!((job.picture_size().to_string(), job.n_evaluations()), ("64x64".into(), 50));
    assert_eq!(pipeline.pool().loaded_bytes(), 0);
    let error = pipeline.resolve(&request.clone().steps(0)).expect_err("refused");
    assert_eq!((error.kind(), error.to_string()), (ErrorKind::Request, "steps: 0 is not a positive number".into()));
}

#[test]
fn a_picture_is_drawn_watched_and_previewed() {
    let mut pipeline = pipeline(&Pool::new(), MemoryOptions::new());
    let quiet = pipeline.generate(&request()).expect("a picture");
    let (mut steps, mut previews) = (0, Vec::new());
    let mut watch = |event| {
        match event {
            Event::Step { .. } => steps += 1,
            Event::Preview { step, images } => previews.push((step, images[0].size(), images[0].is_flat(2))),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    let watched = pipeline.generate_with(&request(), Watch::new().on_event(&mut watch).previews(2));
    assert_eq!(watched.expect("a picture").images, quiet.images, "previews change nothing");
    assert_eq!((steps, previews), (4, vec![(2, quiet.images[0].size(), false)]));
    assert!(!quiet.images[0].is_flat(8));
}

#[test]
fn previews_work_where_one_component_is_loaded_at_a_time() {
    for offload in [Offload::Model, Offload::Sequential] {
        let mut pipeline = pipeline(&Pool::new(), MemoryOptions::new().offload(offload));
        let mut n = 0;
        let mut watch = |event| {
            n += usize::from(matches!(event, Event::Preview { .. }));
            ControlFlow::Continue(())
        };
        let watched = pipeline.generate_with(&request(), Watch::new().on_event(&mut watch).previews(1));
        watched.expect("a picture");
        assert_eq!((n, pipeline.pool().loaded_bytes()), (3, 0), "{offload:?}");
    }
}

#[test]
fn a_token_stops_a_run_from_another_thread_and_the_pipeline_goes_on() {
    let mut pipeline = pipeline(&Pool::new(), MemoryOptions::new());
    let (token, (started, waits)) = (CancelToken::new(), std::sync::mpsc::channel());
    let canceller = thread::spawn({
        let token = token.clone();
        move || {
            waits.recv().expect("a first step");
            token.cancel();
        }
    });
    let mut watch = |event| {
        if matches!(event, Event::Step { step: 1, .. }) {
            started.send(()).expect("somebody waits");
        }
        ControlFlow::Continue(())
    };
    let stopped =
        pipeline.generate_with(&request().steps(1000), Watch::new().on_event(&mut watch).cancel(&token));
    canceller.join().expect("a thread");
    let error = stopped.expect_err("cancelled");
    assert!(matches!(error, Error::Cancelled { step: 1..1000, steps: 1000 }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let before = pipeline.generate_with(&request(), Watch::new().cancel(&token));
    assert_eq!(before.expect_err("the token stays cancelled").kind(), ErrorKind::Cancelled);
    pipeline.generate(&request()).expect("usable afterwards");
}

/// The same pictures on two threads at once, as often as it takes to meet.
fn draw_on_two_threads(pipelines: [Pipeline; 2], alone: &Output) {
    thread::scope(|scope| {
        for mut pipeline in pipelines {
            scope.spawn(move || {
                for _ in 0..3 {
                    let drawn = pipeline.generate(&request()).expect("a picture");
                    assert_eq!((&drawn.images, &drawn.latents), (&alone.images, &alone.latents));
                }
            });
        }
    });
}

#[test]
fn two_pipelines_on_two_threads_hold_equal_engines_once() {
    let pool = Pool::with_limits(None, 0);
    let mut first = pipeline(&pool, MemoryOptions::new());
    let alone = first.generate(&request()).expect("a picture");
    let once = pool.loaded_bytes();
    assert!(once > 1 << 20, "{once} bytes are loaded");
    let second = pipeline(&pool, MemoryOptions::new());
    draw_on_two_threads([first, second], &alone);
    assert_eq!(pool.loaded_bytes(), 0, "nobody holds them any more");
    let [mut a, mut b] = [(); 2].map(|()| pipeline(&pool, MemoryOptions::new()));
    a.generate(&request()).expect("a picture");
    b.generate(&request()).expect("a picture");
    assert_eq!(pool.loaded_bytes(), once);
    drop(a);
    assert_eq!(pool.loaded_bytes(), once, "the other one holds them still");
}

#[test]
fn two_pipelines_on_two_threads_stay_within_one_budget() {
    let whole = Pool::new();
    let mut pipeline_of_its_own = pipeline(&whole, MemoryOptions::new());
    let alone = pipeline_of_its_own.generate(&request()).expect("a picture");
    // Not all that a picture needs at once, so that engines come and go.
    let budget = whole.loaded_bytes() - 1;
    let pool = Pool::with_limits(Some(budget), 0);
    let (first, second) = (pipeline(&pool, MemoryOptions::new()), pipeline(&pool, MemoryOptions::new()));
    let watcher = pool.clone();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let watched = thread::spawn(move || {
        let mut most = 0;
        while is_done.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            most = most.max(watcher.loaded_bytes());
            thread::yield_now();
        }
        most
    });
    draw_on_two_threads([first, second], &alone);
    drop(done);
    let most = watched.join().expect("a thread");
    assert!(0 < most && most <= budget, "{most} of {budget} bytes");
}

#[test]
fn an_engine_that_no_budget_holds_is_refused_by_number() {
    let mut pipeline = pipeline(&Pool::with_budget(1000), MemoryOptions::new());
    let error = pipeline.generate(&request()).expect_err("refused");
    assert!(matches!(error, Error::Budget { budget: 1000, smallest } if smallest > 1000), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Memory);
}

#[test]
fn pictures_come_from_bytes_and_loras_are_refused_with_a_reason() {
    let mut pipeline = pipeline(&Pool::new(), MemoryOptions::new());
    let drawn = pipeline.generate(&request()).expect("a picture").images.swap_remove(0);
    let mut png = Vec::new();
    drawn.write_png(&mut png, &[]).expect("PNG");
    let read = kiln_runtime::image::RgbImage::from_bytes(&png).expect("a picture");
    assert_eq!(read, drawn);
    let changed = pipeline.generate(&request().init(Init::new(read).strength(0.5)));
    assert_ne!(changed.expect("a picture").images[0], drawn);
    let error = LoraFile::from_bytes("style.safetensors", *b"nonsense").expect_err("refused");
    assert!(error.to_string().starts_with("style.safetensors: "), "{error}");
}

#[test]
fn a_request_can_be_written_and_read() {
    let written = serde_json::to_string(&request()).expect("JSON");
    assert_eq!(serde_json::from_str::<Request>(&written).expect("a request"), request());
    let brief: Request = serde_json::from_str(r#"{ "prompts": ["a cat"], "steps": 3 }"#).expect("a request");
    assert_eq!(brief, Request::new("a cat").steps(3));
    let error = serde_json::from_str::<Request>(r#"{ "stepps": 3 }"#).expect_err("refused");
    assert!(error.to_string().contains("unknown field `stepps`"), "{error}");
    let lying = r#"{ "init": { "image": { "rgb": { "width": 9, "height": 9, "data": [1] } } } }"#;
    assert!(serde_json::from_str::<Request>(lying).is_err());
}

#[test]
fn nothing_is_looked_for_that_was_not_said() {
    let error = Backends::new(Libraries::new()).device(Device::Cpu).threads(Some(1)).open_for(&bundle());
    let error = error.expect_err("no library");
    assert_eq!((error.kind(), std::error::Error::source(&error).is_none()), (ErrorKind::Device, true), "{error}");
    let error = Backends::new(Libraries::new().from_environment()).device(Device::Cuda(0)).open_for(&bundle());
    assert_eq!(error.expect_err("the bundle is for the processor").kind(), ErrorKind::Request);
}
