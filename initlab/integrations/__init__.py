"""`initlab.watch` inside the training loops of others: `transformers.WatchCallback`, `lightning.WatchCallback`.

Where a loop is the user's own, `initlab.watch` needs no callback; with accelerate:

::

    accelerator = Accelerator(gradient_accumulation_steps=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with initlab.watch(model, every=100) as w:
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = model(x, y)[1]
                accelerator.backward(loss)  # which divides by 4
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:  # an update was made
                w.step(loss=loss)

Loggers of experiments are handed to `callback=`, of `watch` and of both callbacks: a SummaryWriter of TensorBoard, a
run of wandb or trackio, a logger of Lightning, an Accelerator that was made with `log_with`.
"""
