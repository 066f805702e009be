import url from "./add.wasm?url";

const root = document.querySelector("#root");
try {
  // (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
  const { instance } = await WebAssembly.instantiateStreaming(fetch(url));
  root.textContent = `2 + 3 = ${instance.exports.add(2, 3)}`;
} catch (err) {
  root.textContent = `failed: ${err.name}`;
}
