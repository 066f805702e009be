"use client";
import { useState } from "react";

export default function About() {
  const [count, setCount] = useState(0);
  return (
    <main>
      <h1>About</h1>
      <button onClick={() => setCount(count + 1)}>Clicked {count}</button>
    </main>
  );
}
