import { HttpClient, HttpEventType } from "@angular/common/http";
import { Component, inject, signal } from "@angular/core";

/** An upload with its progress. That needs XMLHttpRequest, so do not use withFetch(). */
@Component({
  selector: "app-upload",
  template: `
    <section>
      <h2>Upload</h2>
      <label>Photo of the coat <input #file type="file" (change)="upload(file.files![0])" /></label>
      <label>Progress <progress max="1" [value]="progress()"></progress></label>
      <p>{{ result() }}</p>
    </section>
  `,
})
export class Upload {
  readonly #http = inject(HttpClient);
  protected readonly progress = signal(0);
  protected readonly result = signal("");

  protected upload(file: File) {
    this.#http.put<{ bytes: number }>("/api/photo", file, { reportProgress: true, observe: "events" }).subscribe({
      next: (event) => {
        if (event.type === HttpEventType.UploadProgress) this.progress.set(event.loaded / file.size);
        if (event.type === HttpEventType.Response) this.result.set(`${event.body?.bytes} bytes uploaded`);
      },
      error: ({ message }) => this.result.set(message),
    });
  }
}
