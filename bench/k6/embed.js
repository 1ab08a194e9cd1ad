// Constant arrivals of Embed requests, with distinct texts and a mix of tasks. README.md beside it says how to run it.
import exec from "k6/execution";
import grpc from "k6/net/grpc";
import { check } from "k6";
import { SharedArray } from "k6/data";
import { Counter, Rate } from "k6/metrics";

const TARGET = __ENV.TARGET || "localhost:50051";
const RATE = Number(__ENV.RATE || 50); // requests a second
const DURATION = __ENV.DURATION || "30s";
const TASKS = __ENV.TASKS || "retrieval:query=3,retrieval:document=1,classification=1,none=1";
const TEXTS = __ENV.TEXTS || ""; // a file: lines, or .jsonl with a field `text`
const TEXTS_PER_REQUEST = Number(__ENV.TEXTS_PER_REQUEST || 1);
const TENANT = __ENV.TENANT || "";
const P99_MS = Number(__ENV.P99_MS || 500);
const MAX_FAILED = Number(__ENV.MAX_FAILED || 0.01);
const TIMEOUT = __ENV.TIMEOUT || "10s";
const PROTO_ROOT = __ENV.PROTO_ROOT || "../../.links"; // the folder in which the protos are embedmux/proto/*.proto

const ROLES = { query: "ROLE_QUERY", document: "ROLE_DOCUMENT" };
const WORDS = (
  "account answer apple bank battery before bird book bridge build camera cancel change city clean coffee cold " +
  "company cost country credit delay door energy error export factory family farm file flight forest garden glass " +
  "green health history hotel house import island journey kitchen language law letter light market memory mirror " +
  "money morning mountain music network number office order paper password payment people picture plan police price " +
  "problem product question quick rain record refund report request river road salt school search server setting " +
  "short silver simple station story street summer support system table ticket train travel update user value " +
  "village voice wall water weather window winter write yellow"
).split(" ");

const texts = new SharedArray("texts", () => {
  if (!TEXTS) return [];
  const lines = open(TEXTS).split("\n").filter((line) => line.trim());
  return TEXTS.endsWith(".jsonl") ? lines.map((line) => JSON.parse(line).text) : lines;
});
const mix = parseTasks(TASKS);
const failed = new Rate("embed_failed");
const embedded = new Counter("embed_texts");
const statuses = new Counter("embed_status");

const client = new grpc.Client();
client.load([PROTO_ROOT], "embedmux/proto/embed.proto");

export const options = {
  scenarios: {
    embed: {
      executor: "constant-arrival-rate",
      rate: RATE,
      timeUnit: "1s",
      duration: DURATION,
      preAllocatedVUs: Math.max(20, Math.ceil(RATE / 2)),
      maxVUs: Math.max(200, RATE * 10),
    },
  },
  summaryTrendStats: ["med", "p(90)", "p(99)", "p(99.9)", "max"],
  thresholds: {
    grpc_req_duration: [`p(99)<${P99_MS}`],
    embed_failed: [`rate<${MAX_FAILED}`],
    // k6 measures from the send: what it had no user left to send is in no percentile, so there must be nothing such.
    dropped_iterations: ["count<1"],
  },
};

// A server that keeps results has seen the texts of the last run: each run counts from another number.
export function setup() {
  return { first: Math.floor(Math.random() * 1e8) };
}

export default function (run) {
  if (!connect()) return;
  const request = { texts: [], truncate: "TRUNCATE_END" };
  for (let place = 0; place < TEXTS_PER_REQUEST; place++) {
    request.texts.push({ text: nextText(run.first, place), instruction: drawTask() });
  }
  const metadata = TENANT ? { "x-embedmux-tenant": TENANT } : {};
  const reply = client.invoke("embedmux.v1.Embedder/Embed", request, { metadata, timeout: TIMEOUT });
  const isOk = reply.status === grpc.StatusOK;
  const errors = isOk ? reply.message.errors.length : 0;
  statuses.add(1, { status: String(reply.status) });
  failed.add(!isOk || errors > 0);
  if ((!isOk || errors) && exec.vu.iterationInInstance === 0) {
    console.warn(isOk ? reply.message.errors[0].message : `${reply.status}: ${reply.error.message}`);
  }
  if (!isOk) return;
  embedded.add(TEXTS_PER_REQUEST - errors);
  check(reply.message, {
    "a vector for every text": (message) =>
      decodedLength(message.vectors) === message.rowBytes * TEXTS_PER_REQUEST && message.rowBytes > 0,
    "token counts for every text": (message) => message.numTokens.length === TEXTS_PER_REQUEST,
  });
}

// Whether this virtual user has its connection; an exception would count as no failure.
let isConnected = false;
function connect() {
  if (isConnected) return true;
  try {
    client.connect(TARGET, { plaintext: true, timeout: "5s" });
    isConnected = true;
  } catch (error) {
    failed.add(true);
    if (exec.vu.iterationInInstance === 0) console.warn(error.message || String(error));
  }
  return isConnected;
}

// The tasks of "TASK:ROLE=WEIGHT,...", with summed weights; `none` is the bare model.
function parseTasks(argument) {
  let total = 0;
  return argument.split(",").map((part) => {
    const [name, weight] = part.trim().split("=");
    const [task, role] = name.split(":");
    if (!task || (role && !ROLES[role]) || !(Number(weight || 1) > 0)) {
      throw new Error(`TASKS: ${part} must be TASK, TASK:ROLE or TASK:ROLE=WEIGHT, ROLE query or document`);
    }
    total += Number(weight || 1);
    const instruction = task === "none" ? {} : { task };
    if (role) instruction.role = ROLES[role];
    return { upTo: total, instruction };
  });
}

function drawTask() {
  const drawn = Math.random() * mix[mix.length - 1].upTo;
  return mix.find((share) => drawn < share.upTo).instruction;
}

// A text of the file, or one made of words: its number, from `first`, in their base, then words at random.
function nextText(first, place) {
  let number = first + exec.scenario.iterationInTest * TEXTS_PER_REQUEST + place;
  if (texts.length) return texts[number % texts.length];
  const words = [];
  for (let digit = 0; digit < 4; digit++) {
    words.push(WORDS[number % WORDS.length]);
    number = Math.floor(number / WORDS.length);
  }
  for (let left = extraWords(); left > 0; left--) words.push(WORDS[Math.floor(Math.random() * WORDS.length)]);
  return words.join(" ");
}

// Log-normal, like queries: half of them have no more than three words beside their number; one in five is a paragraph.
function extraWords() {
  const normal = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return Math.round(Math.min(170, (Math.random() < 0.2 ? 86 : 3) * Math.exp(0.5 * normal)));
}

// Bytes come as base64.
function decodedLength(base64) {
  return (base64.length / 4) * 3 - (base64.endsWith("==") ? 2 : base64.endsWith("=") ? 1 : 0);
}
