//! Pictures that start from pictures.

use serde_json::json;

use super::{call, img2img, sent};
use crate::server::Server;

/// How far two pictures are apart, pixel by pixel.
fn differs(a: &kiln_runtime::image::RgbImage, b: &kiln_runtime::image::RgbImage) -> Vec<bool> {
    assert_eq!(a.size(), b.size());
    a.data().chunks(3).zip(b.data().chunks(3)).map(|(a, b)| a != b).collect()
}

#[test]
fn a_mask_keeps_the_rest_to_the_bit() {
    let server = Server::start(&[]);
    let (original, image) = sent(96, 64, |x, y| [x as u8 * 2, y as u8 * 3, 40]);
    let in_hole = |x: u32, y: u32| (30..50).contains(&x) && (20..40).contains(&y);
    let (_, mask) = sent(96, 64, |x, y| [if in_hole(x, y) { 255 } else { 0 }; 3]);
    let base =
        json!({ "init_images": [image], "mask": mask, "mask_blur": 0, "width": 64, "height": 64, "steps": 3 });
    let draw = |changes: serde_json::Value| {
        let mut all = call(base.clone());
        all.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        img2img(&server, all)
    };
    let inside = |i: usize| in_hole(i as u32 % 96, i as u32 / 96);
    // Only what is masked: drawn large, laid back into the whole picture.
    let only = draw(json!({ "denoising_strength": 0.9, "inpaint_full_res_padding": 8 }));
    assert_eq!((only.info["width"].clone(), only.info["height"].clone()), (json!(96), json!(64)));
    let changed = differs(&only.images[0], &original);
    assert!(changed.iter().enumerate().all(|(i, changed)| !changed || inside(i)));
    assert!(changed.iter().filter(|changed| **changed).count() > 200);
    // The whole picture.
    let whole = draw(json!({ "inpaint_full_res": false, "width": 96, "height": 64, "inpainting_fill": 1 }));
    let changed = differs(&whole.images[0], &original);
    assert!(changed.iter().enumerate().all(|(i, changed)| !changed || inside(i)));
    // The other way around.
    let around = draw(json!({ "inpainting_mask_invert": 1, "width": 96, "height": 64 }));
    let changed = differs(&around.images[0], &original);
    assert!(changed.iter().enumerate().all(|(i, changed)| !changed || !inside(i)));
    assert!(changed.iter().filter(|changed| **changed).count() > 2000);
    // Noise or nothing in the latents under the mask: what lay there before is all the same.
    let over = |fill: u32, image: &str| {
        draw(json!({ "inpainting_fill": fill, "init_images": [image], "denoising_strength": 0.5,
                     "inpaint_full_res": false, "width": 96, "height": 64 }))
    };
    let fills: Vec<_> = (0..4).map(|fill| over(fill, &image).images[0].clone()).collect();
    for (i, fill) in fills.iter().enumerate() {
        assert!(fills[..i].iter().all(|other| other != fill), "{i}");
        assert!(differs(fill, &original).iter().enumerate().all(|(i, changed)| !changed || inside(i)));
    }
    let (_, other) =
        sent(96, 64, |x, y| if in_hole(x, y) { [255, 0, 0] } else { [x as u8 * 2, y as u8 * 3, 40] });
    assert!(over(1, &other).images[0] != fills[1]);
    for fill in [2, 3] {
        assert!(over(fill, &other).images[0] == fills[fill as usize], "{fill}");
    }
    // A blur mixes around the border, and nothing far away.
    let blurred = draw(json!({ "mask_blur": 2 }));
    let changed = differs(&blurred.images[0], &original);
    let far = |i: usize| !(20..60).contains(&(i % 96)) || !(10..50).contains(&(i / 96));
    assert!(changed.iter().enumerate().all(|(i, changed)| !changed || !far(i)));
    assert!(changed.iter().enumerate().any(|(i, changed)| *changed && !inside(i)));
}

#[test]
fn pictures_start_from_pictures_with_or_without_prefix() {
    let server = Server::start(&[]);
    let (_, image) = sent(48, 96, |x, y| [x as u8 * 5, y as u8 * 2, 200]);
    let plain = image.split_once(',').expect("a prefix").1.to_owned();
    let size = json!({ "width": 64, "height": 64, "steps": 4 });
    let draw = |image: &str, mode: u32, strength: f64| {
        let mut all = call(size.clone());
        all["init_images"] = json!([image]);
        all["resize_mode"] = mode.into();
        all["denoising_strength"] = strength.into();
        img2img(&server, all)
    };
    let first = draw(&image, 0, 0.5);
    assert!(first.images == draw(&plain, 0, 0.5).images);
    assert!(first.images != draw(&image, 1, 0.5).images);
    assert!(first.images != draw(&image, 2, 0.5).images);
    assert!(first.images != draw(&image, 0, 0.75).images);
    let echoed = json!({ "init_images": [image], "include_init_images": true, "steps": 2 });
    assert_eq!(img2img(&server, call(echoed)).parameters["init_images"], json!([image]));
}

#[test]
fn pictures_are_resized_without_a_model() {
    let server = Server::start(&[]);
    let (original, image) = sent(40, 20, |x, y| [x as u8, y as u8, 7]);
    let resize = |changes: serde_json::Value| {
        let mut all = json!({
            "image": image, "resize_mode": 0, "gfpgan_visibility": 0, "codeformer_visibility": 0,
            "upscaling_resize": 2, "upscaling_resize_w": 512, "upscaling_resize_h": 512, "upscaling_crop": true,
            "upscaler_1": "Lanczos", "upscaler_2": "None", "extras_upscaler_2_visibility": 0,
        });
        all.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        let answer = server.post("/sdapi/v1/extra-single-image", &all).expect(200).json();
        assert!(answer["html_info"].is_string());
        super::call::read_picture(&answer["image"])
    };
    assert_eq!(resize(json!({})), original.resized(kiln_runtime::Size::new(80, 40)));
    assert_eq!(resize(json!({ "upscaler_1": "None" })), original);
    let to = json!({ "resize_mode": 1, "upscaling_resize_w": 30, "upscaling_resize_h": 30 });
    assert_eq!(resize(to).size(), kiln_runtime::Size::new(30, 30));
    let to = json!({ "resize_mode": 1, "upscaling_resize_w": 80, "upscaling_resize_h": 30, "upscaling_crop": false });
    assert_eq!(resize(to).size(), kiln_runtime::Size::new(80, 40));
    let list = json!([{ "data": image, "name": "a" }, { "data": image, "name": "b" }]);
    let many = json!({ "imageList": list, "upscaler_1": "Lanczos" });
    let many = server.post("/sdapi/v1/extra-batch-images", &many).expect(200).json();
    assert_eq!(many["images"].as_array().map(Vec::len), Some(2));
}

#[test]
fn units_steer_a_model_that_has_controlnets() {
    let family = crate::families::Family::new("controlnet");
    let server = Server::start(&[&family.folder.path().display().to_string()]);
    assert_eq!(server.get("/controlnet/model_list").expect(200).json()["model_list"], json!(["controlnet"]));
    let (_, image) = sent(64, 64, |x, _| if x < 32 { [200, 30, 30] } else { [30, 30, 200] });
    let draw = |units: serde_json::Value| {
        let scripts = json!({ "ControlNet": { "args": units } });
        let all = call(json!({ "width": 64, "height": 64, "alwayson_scripts": scripts }));
        super::txt2img(&server, all).images
    };
    let plain = draw(json!([]));
    assert!(draw(json!([{ "enabled": false, "image": image }])) == plain);
    let steered =
        draw(json!([{ "image": image, "module": "none", "model": "controlnet [0123]", "weight": 1.0 }]));
    assert!(steered != plain);
    assert!(draw(json!([{ "input_image": image }])) == steered);
    assert!(draw(json!([{ "image": image, "weight": 0.0 }])) != steered);
    for (unit, message) in [
        (json!({ "image": image, "module": "canny" }), "module 'canny'"),
        (json!({ "image": image, "model": "other" }), "'other' is not free"),
        (json!({ "image": image, "control_mode": 1 }), "control_mode"),
        (json!({ "image": image, "mask": image }), "mask"),
        (json!({}), "has no image"),
        (json!({ "image": image, "guidance_end": 2 }), "guidance_end"),
    ] {
        let scripts = json!({ "controlnet": { "args": [unit] } });
        let answer =
            server.post("/sdapi/v1/txt2img", &call(json!({ "alwayson_scripts": scripts }))).expect(400);
        assert!(answer.text().contains(message), "{}", answer.text());
    }
    let two = json!({ "controlnet": { "args": [{ "image": image }, { "image": image }] } });
    server.post("/sdapi/v1/txt2img", &call(json!({ "alwayson_scripts": two }))).expect(400);
}
