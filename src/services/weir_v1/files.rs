//! `weir.v1.Files`.

use tonic::{Request, Response, Status, service::Routes};

use crate::{
    call::into_status,
    core::{Error, Name, feeds::Happening, files::FileInfo},
    proto::weir::v1::{
        DeleteFileRequest, DeleteFileResponse, File, GetFileRequest, GetUploadRequest,
        ListFilesRequest, ListFilesResponse, Upload,
        files_server::{Files, FilesServer},
    },
    services::{
        Core,
        check::{Check, timestamp},
    },
};

/// Adds the service.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    routes.add_service(FilesServer::new(Door { core: core.clone() }))
}

struct Door {
    core: Core,
}

#[tonic::async_trait]
impl Files for Door {
    async fn get_file(&self, request: Request<GetFileRequest>) -> Result<Response<File>, Status> {
        let id = file_id(&request.get_ref().file_id).map_err(into_status)?;
        let info = self.core.files.get(id).await.map_err(into_status)?;
        Ok(Response::new(self.file(info)))
    }

    async fn list_files(
        &self,
        request: Request<ListFilesRequest>,
    ) -> Result<Response<ListFilesResponse>, Status> {
        let ListFilesRequest {
            page_size,
            page_token,
        } = request.into_inner();
        let size = usize::try_from(page_size)
            .map_err(|_| Error::invalid("page_size", "page_size must not be negative"))
            .map_err(into_status)?;
        let page = self.core.files.list(&page_token, size).await;
        let page = page.map_err(into_status)?;
        let files = page.files.into_iter().map(|info| self.file(info));
        Ok(Response::new(ListFilesResponse {
            files: files.collect(),
            next_page_token: page.next.unwrap_or_default(),
        }))
    }

    async fn delete_file(
        &self,
        request: Request<DeleteFileRequest>,
    ) -> Result<Response<DeleteFileResponse>, Status> {
        let id = file_id(&request.get_ref().file_id).map_err(into_status)?;
        self.core.files.delete(id).await.map_err(into_status)?;
        let labels = [("file", id)];
        self.core.feeds.event(Happening::Deleted, &labels);
        Ok(Response::new(DeleteFileResponse {}))
    }

    async fn get_upload(
        &self,
        request: Request<GetUploadRequest>,
    ) -> Result<Response<Upload>, Status> {
        let upload_id = request.into_inner().upload_id;
        let id = name("upload_id", &upload_id).map_err(into_status)?;
        let progress = self.core.files.progress(&id).await.map_err(into_status)?;
        let signed = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(Upload {
            upload_id,
            committed_offset: signed(progress.committed),
            total_size: signed(progress.size.unwrap_or(0)),
            expires: Some(timestamp(progress.expires.into())),
        }))
    }
}

fn file_id(id: &str) -> Result<&str, Error> {
    name("file_id", id).map(|_| id)
}

fn name(field: &str, text: &str) -> Result<Name, Error> {
    let mut check = Check::new(&"");
    let name = check.name(field, text);
    check.finish(name)
}

impl Door {
    fn file(&self, info: FileInfo) -> File {
        File {
            file_id: info.id.to_string(),
            download_url: self.core.files.url(info.id),
            filename: info.name,
            size: i64::try_from(info.size).unwrap_or(i64::MAX),
            content_type: info.content_type,
            checksum: info.sha256,
            created: Some(timestamp(info.created.into())),
        }
    }
}
