// Where the model runs: in the server of hrm play, or in this page with onnxruntime-web.
// segments(model, rows, limit, signal) yields after each segment { tokens, qHalt, qContinue, residual }, by row.

export async function makeThinker(catalogue) {
  return catalogue.thinker === "server" ? new Server() : new Browser();
}

class Server {
  async *segments(model, rows, limit, signal) {
    const response = await fetch("think", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: model.name, rows, segments: limit }),
      signal,
    });
    if (!response.ok) throw new Error((await response.text()) || `the server answers ${response.status}`);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let text = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (text + value).split("\n");
      text = lines.pop();
      for (const line of lines) {
        const segment = JSON.parse(line);
        if (segment.error) throw new Error(segment.error);
        yield segment;
      }
    }
  }
}

class Browser {
  #runtime = null;
  #sessions = new Map();

  async #session(model) {
    if (!this.#runtime) {
      this.#runtime = await import("./ort/ort.wasm.min.mjs");
      this.#runtime.env.wasm.numThreads = 1; // more need headers that a static host does not send
      this.#runtime.env.wasm.wasmPaths = new URL("ort/", document.baseURI).href;
    }
    if (!this.#sessions.has(model.name)) {
      const file = await fetch(model.file);
      if (!file.ok) throw new Error(`${model.file} is missing`);
      this.#sessions.set(model.name, await this.#runtime.InferenceSession.create(new Uint8Array(await file.arrayBuffer())));
    }
    return this.#sessions.get(model.name);
  }

  async *segments(model, rows, limit, signal) {
    const session = await this.#session(model), { Tensor } = this.#runtime;
    const count = rows.length, { seq_len, vocab_size, positions, hidden_size } = model;
    const whole = (values, ...shape) => new Tensor("int64", BigInt64Array.from(values, BigInt), shape);
    const feeds = { inputs: whole(rows.flat(), count, seq_len) };
    const state = () => new Tensor("float32", new Float32Array(count * positions * hidden_size), [count, positions, hidden_size]);
    for (const name of session.inputNames) {
      if (name === "puzzle_identifiers") feeds[name] = whole(Array(count).fill(0), count);
      if (name === "seeds") feeds[name] = whole([...Array(count).keys()], count);
      if (name === "z_H" || name === "z_L") feeds[name] = state();
    }
    for (let step = 0; step < limit && !signal.aborted; step++) {
      feeds.steps = whole(Array(count).fill(step), count);
      const outputs = await session.run(feeds);
      for (const name of ["z_H", "z_L"]) if (`next_${name}` in outputs) feeds[name] = outputs[`next_${name}`];
      yield {
        tokens: answers(outputs.logits.data, count, seq_len, vocab_size),
        qHalt: [...outputs.q_halt.data],
        qContinue: [...outputs.q_continue.data],
        residual: [...outputs.residual.data],
      };
      await new Promise((resume) => setTimeout(resume)); // the page answers between segments
    }
  }
}

// The most likely token of each cell.
function answers(logits, count, cells, vocabulary) {
  return Array.from({ length: count }, (_, row) =>
    Array.from({ length: cells }, (_, cell) => {
      const start = (row * cells + cell) * vocabulary;
      let best = 0;
      for (let token = 1; token < vocabulary; token++) if (logits[start + token] > logits[start + best]) best = token;
      return best;
    }),
  );
}
