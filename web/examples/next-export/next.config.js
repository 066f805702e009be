/** A static export: `next build` writes it to out/. @type {import("next").NextConfig} */
export default { output: "export" };
