// What llama.cpp makes of a GGUF file, token by token: for each window the log-probability of every next token, and
// the token it holds for most probable.  One line of JSON: [[[log-probability, most probable], ...], ...].
//   node gguf_engine.mjs FOLDER MODEL.gguf windows.json     FOLDER: where `npm install node-llama-cpp` was run
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, file, windows] = process.argv.slice(2);
const library = createRequire(join(resolve(folder), "package.json")).resolve("node-llama-cpp");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(library));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1 });
const model = await llama.loadModel({ modelPath: file, gpuLayers: 0 });
const rows = JSON.parse(readFileSync(windows, "utf8"));
const context = await model.createContext({ contextSize: Math.max(256, rows[0].length + 8), threads: 1, flashAttention: false });
const sequence = context.getSequence();
const AT_ONCE = 16; // every answer is a whole vocabulary

/** [log-probability of the next token, most probable token] at each place of a window but the last. */
async function answers(tokens) {
    const found = [];
    for (let at = 0; at < tokens.length; at += AT_ONCE) {
        const part = tokens.slice(at, at + AT_ONCE);
        const asked = part.map((t, i) => (at + i + 1 < tokens.length ? [t, { generateNext: { probabilities: true } }] : t));
        (await sequence.controlledEvaluate(asked)).forEach((answer, i) => {
            const likely = answer?.next?.probabilities;
            if (likely) found.push([Math.log(likely.get(tokens[at + i + 1])), likely.keys().next().value]);
        });
    }
    return found;
}

const all = [];
for (const tokens of rows) {
    await sequence.clearHistory();
    all.push(await answers(tokens));
}
console.log(JSON.stringify(all));
process.exit(0);
