export const dynamicParams = false;

export function generateStaticParams() {
  return [{ slug: "intro" }, { slug: "v1.2" }];
}

export default async function Doc({ params }) {
  const { slug } = await params;
  return (
    <main>
      <h1>{slug}</h1>
    </main>
  );
}
