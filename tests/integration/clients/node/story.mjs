// A story told with the openai library for Node: `node story.mjs URL KEY MODEL`. Prints JSON.
import OpenAI, { toFile } from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const line = JSON.stringify({
  messages: [
    { role: "user", content: "hi" },
    { role: "assistant", content: "yes" },
  ],
});

const file = await client.files.create({
  file: await toFile(Buffer.from(`${line}\n`.repeat(20)), "train.jsonl"),
  purpose: "fine-tune",
});
const job = await client.fineTuning.jobs.create({
  model,
  training_file: file.id,
  metadata: { at: String(Date.now()) },
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2 } } },
});
const retrieved = await client.fineTuning.jobs.retrieve(job.id);

const listed = [];
for await (const each of client.fineTuning.jobs.list({ limit: 1 })) {
  listed.push(each.id);
  if (listed.length === 2) break;
}

let events = [];
for (let tries = 0; tries < 200 && events.length === 0; tries += 1) {
  events = [];
  for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 1 })) events.push(event.message);
  if (events.length === 0) await new Promise((resolve) => setTimeout(resolve, 50));
}

const error = await client.fineTuning.jobs.retrieve("ftjob-nobody").catch(({ status, code }) => ({ status, code }));
const cancelled = await client.fineTuning.jobs.cancel(job.id);
console.log(
  JSON.stringify({
    file: file.id,
    created: job.id,
    status: job.status,
    retrieved: retrieved.id,
    listed,
    events,
    error,
    cancelled_id: cancelled.id,
    cancelled: cancelled.status,
  }),
);
